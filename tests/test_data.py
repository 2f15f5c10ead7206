"""Opening a task's images: where they may be, how they are split, and what is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import struct
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from PIL import Image

from taps_registry.registry.data.cache import Cache, free_memory, room
from taps_registry.registry.data.loaders import Images, evaluation_loader, training_loader
from taps_registry.registry.data.sources import Sample
from taps_registry.registry.data.splits import open_data, open_images
from taps_registry.registry.data.transforms import evaluation_transform, training_transform
from taps_registry.registry.errors import DataError
from taps_registry.registry.records import InputConfig
from taps_registry.registry.training import cache as caches

CLASSES = ("dark", "grey", "light")
INPUT = InputConfig((3, 24, 24), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", 1.0, "center")


def make_class(folder: Path, count: int, seed: int) -> None:
    """A folder of ``count`` images, no two of them alike."""
    folder.mkdir(parents=True)
    chance = numpy.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(chance.integers(0, 256, (8, 8, 3), dtype="uint8")).save(folder / f"{number}.png")


def make_folders(root: Path, classes: Sequence[str] = CLASSES, count: int = 4, seed: int = 0) -> Path:
    """Class folders. Returns ``root``."""
    for index, name in enumerate(classes):
        make_class(root / name, count, 100 * seed + index)
    return root


def make_splits(root: Path, splits: Sequence[str], classes: Sequence[str] = CLASSES, count: int = 4) -> Path:
    """A folder of class folders for each split. Returns ``root``."""
    for index, split in enumerate(splits):
        make_folders(root / split, classes, count, seed=index + 1)
    return root


def names(samples: Sequence[Sample]) -> list[str]:
    return [sample.name for sample in samples]


def truncate(image: Path) -> None:
    """Cut off the second half, as a full disk or a broken download does."""
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])


# Splits


def test_class_folders_are_split_70_15_15_within_each_class(tmp_path: Path) -> None:
    data = open_data(str(make_folders(tmp_path / "data", count=20)))
    assert data.classes == CLASSES
    for split, count in ((data.train, 14), (data.val, 3), (data.test, 3)):
        assert Counter(sample.label for sample in split) == {0: count, 1: count, 2: count}


def test_the_three_splits_have_no_image_in_common_and_lose_none(images: Path) -> None:
    data = open_data(str(images))
    every = [*names(data.train), *names(data.val), *names(data.test)]
    assert len(every) == len(set(every)) == 36
    assert set(every) == {path.relative_to(images).as_posix() for path in images.glob("*/*.png")}


def test_a_label_is_the_index_of_the_images_folder(images: Path) -> None:
    data = open_data(str(images))
    for sample in (*data.train, *data.val, *data.test):
        assert sample.name.startswith(data.classes[sample.label] + "/")


def test_the_same_seed_gives_the_same_split(images: Path) -> None:
    first, second = (open_data(str(images), seed=3) for _ in range(2))
    assert names(first.train) == names(second.train)
    assert names(first.val) == names(second.val)
    assert names(first.test) == names(second.test)
    assert first.fingerprint == second.fingerprint


def test_another_seed_gives_another_split(images: Path) -> None:
    first, second = (open_data(str(images), seed=seed) for seed in (3, 4))
    assert set(names(first.test)) != set(names(second.test))
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize(
    "folders",
    [
        ("train", "val", "test"),
        ("training", "validation", "testing"),
        ("Train", "valid", "Test"),
    ],
)
def test_split_folders_are_taken_as_they_are(tmp_path: Path, folders: tuple[str, str, str]) -> None:
    make_folders(tmp_path / folders[0], count=3, seed=1)
    make_folders(tmp_path / folders[1], count=2, seed=2)
    make_folders(tmp_path / folders[2], count=1, seed=3)
    data = open_data(str(tmp_path))
    assert (len(data.train), len(data.val), len(data.test)) == (9, 6, 3)
    assert data.test[0].read() == (tmp_path / folders[2] / "dark" / "0.png").read_bytes()


def test_a_missing_validation_set_is_taken_from_the_training_images_and_not_from_the_test_images(
    tmp_path: Path,
) -> None:
    data = open_data(str(make_splits(tmp_path, ["train", "test"], count=10)))
    assert (len(data.train), len(data.val), len(data.test)) == (24, 6, 30)
    in_test = {(tmp_path / "test" / name).read_bytes() for name in names(data.test)}
    assert not in_test & {sample.read() for sample in data.val}
    assert not set(names(data.train)) & set(names(data.val))


def test_a_missing_test_set_stays_missing_where_there_are_train_and_val(tmp_path: Path) -> None:
    data = open_data(str(make_splits(tmp_path, ["train", "val"])))
    assert (len(data.train), len(data.val), len(data.test)) == (12, 12, 0)


def test_val_and_test_images_may_be_elsewhere(tmp_path: Path) -> None:
    train = make_folders(tmp_path / "a", count=5, seed=1)
    val = make_folders(tmp_path / "b", count=2, seed=2)
    test = make_folders(tmp_path / "c", count=3, seed=3)
    data = open_data(str(train), str(val), str(test))
    assert (len(data.train), len(data.val), len(data.test)) == (15, 6, 9)
    assert data.val[0].read() == (val / "dark" / "0.png").read_bytes()


def test_val_elsewhere_replaces_that_of_the_data_itself(tmp_path: Path) -> None:
    whole = make_splits(tmp_path / "whole", ["train", "val", "test"])
    other = make_folders(tmp_path / "other", count=1, seed=9)
    data = open_data(str(whole), val_data=str(other))
    assert (len(data.train), len(data.val), len(data.test)) == (12, 3, 12)


def test_test_images_elsewhere_leave_all_others_to_train_and_val(tmp_path: Path) -> None:
    train = make_folders(tmp_path / "a", count=10, seed=1)
    test = make_folders(tmp_path / "c", count=3, seed=3)
    data = open_data(str(train), test_data=str(test))
    assert (len(data.train), len(data.val), len(data.test)) == (24, 6, 9)


def test_classes_elsewhere_may_be_in_another_order_of_labels(tmp_path: Path) -> None:
    """Folders of ten and more classes are sorted as numbers, and labels follow the names."""
    train = make_folders(tmp_path / "a", ["class2", "class10", "class1"], seed=1)
    val = make_folders(tmp_path / "b", ["class10", "class1", "class2"], count=1, seed=2)
    data = open_data(str(train), str(val))
    assert data.classes == ("class1", "class2", "class10")
    assert {sample.name: sample.label for sample in data.val} == {
        "class1/0.png": 0,
        "class2/0.png": 1,
        "class10/0.png": 2,
    }


def test_images_come_class_by_class_in_natural_order(tmp_path: Path) -> None:
    data = open_data(str(make_splits(tmp_path, ["train", "val"], ["b10", "b9"], count=11)))
    assert data.classes == ("b9", "b10")
    assert names(data.train) == [f"{name}/{number}.png" for name in ("b9", "b10") for number in range(11)]


# Other sources


def test_a_tar_is_refused_with_what_to_do_about_it(tmp_path: Path) -> None:
    """timm would decode other images in place of unreadable ones, and mix them up between threads."""
    make_folders(tmp_path / "data")
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        tar.add(tmp_path / "data", "data")
    with pytest.raises(DataError, match=r"data\.tar is a file; unpack it, and name the folder"):
        open_data(str(tmp_path / "data.tar"))


def test_timms_image_folder_scheme_finds_the_splits(tmp_path: Path) -> None:
    make_splits(tmp_path, ["train", "test"], count=10)
    data = open_data(f"torch/image_folder@{tmp_path}")
    assert data.classes == CLASSES
    assert (len(data.train), len(data.val), len(data.test)) == (24, 6, 30)


def test_timms_image_folder_scheme_does_not_test_on_what_it_trains_on(tmp_path: Path) -> None:
    """timm gives the whole folder for every split that it does not find."""
    make_folders(tmp_path, count=10)
    data = open_data(f"torch/image_folder@{tmp_path}")
    trained = {sample.image().tobytes() for sample in data.train}
    assert not [sample.name for sample in data.test if sample.image().tobytes() in trained]


def test_timms_image_folder_scheme_works_without_test_images(tmp_path: Path) -> None:
    data = open_data(f"torch/image_folder@{make_splits(tmp_path, ['train', 'val'], count=10)}")
    assert data.classes == CLASSES
    assert not data.test


def write_idx(path: Path, values: numpy.ndarray) -> None:
    """An array of bytes in the format of the MNIST files."""
    path.write_bytes(
        struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    )


def test_timms_mnist_scheme_keeps_its_test_images_for_testing(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    chance = numpy.random.default_rng(0)
    for prefix, count in (("train", 40), ("t10k", 10)):
        write_idx(raw / f"{prefix}-images-idx3-ubyte", chance.integers(0, 256, (count, 28, 28), dtype="uint8"))
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", numpy.arange(count, dtype="uint8") % 10)
    data = open_data(f"torch/mnist@{tmp_path}")
    assert len(data.classes) == 10
    assert data.classes[3].startswith("3")
    assert (len(data.train), len(data.val), len(data.test)) == (30, 10, 10)
    assert data.test[7].label == 7
    assert data.test[7].image().mode == "RGB"
    assert data.test[7].image().size == (28, 28)


def test_a_scheme_without_its_files_is_an_error_that_says_where_they_were_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"cannot open the train split of torch/mnist@{tmp_path}: Dataset not found"):
        open_data(f"torch/mnist@{tmp_path}")


def test_an_unknown_scheme_is_an_error_that_lists_the_schemes() -> None:
    with pytest.raises(DataError, match=r"no folder nosuch/mnist@/tmp\. .*torch, hfds, hfids, tfds, wds"):
        open_data("nosuch/mnist@/tmp")


def test_an_unknown_data_set_of_a_known_scheme_is_an_error() -> None:
    with pytest.raises(DataError, match="Unknown torchvision dataset nosuch"):
        open_data("torch/nosuch@/tmp")


# What is refused


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"There is no folder {tmp_path / 'none'}"):
        open_data(str(tmp_path / "none"))


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no class folders"):
        open_data(str(tmp_path))


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fewer than two classes \(dark\)"):
        open_data(str(make_folders(tmp_path, ["dark"])))


def test_a_class_folder_without_images_is_an_error(tmp_path: Path) -> None:
    make_folders(tmp_path)
    (tmp_path / "zebra").mkdir()
    (tmp_path / "zebra" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="classes without images: zebra"):
        open_data(str(tmp_path))


def test_folders_without_any_image_are_an_error(tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=str(tmp_path)):
        open_data(str(tmp_path))


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_missing_from_a_split_is_an_error(tmp_path: Path, split: str) -> None:
    make_splits(tmp_path, ["train", "val", "test"])
    shutil.rmtree(tmp_path / split / "grey")
    with pytest.raises(DataError, match=rf"The {split} split \(.*{split}\) lacks grey"):
        open_data(str(tmp_path))


def test_a_class_that_only_a_split_has_is_an_error(tmp_path: Path) -> None:
    make_splits(tmp_path, ["train", "val"])
    make_class(tmp_path / "val" / "zebra", 1, seed=5)
    with pytest.raises(DataError, match="has zebra, which train lacks"):
        open_data(str(tmp_path))


def test_splits_without_train_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has val, test but no train folder"):
        open_data(str(make_splits(tmp_path, ["val", "test"])))


def test_images_outside_of_class_folders_are_an_error(tmp_path: Path) -> None:
    make_folders(tmp_path)
    shutil.copy(tmp_path / "dark" / "0.png", tmp_path / "loose.png")
    with pytest.raises(DataError, match=r"images outside of class folders, such as loose\.png"):
        open_data(str(tmp_path))


@pytest.mark.parametrize(("count", "split"), [(1, "test"), (2, "val")])
def test_classes_with_too_few_images_to_split_are_named(tmp_path: Path, count: int, split: str) -> None:
    make_folders(tmp_path, count=10)
    make_class(tmp_path / "tiny", count, seed=7)
    with pytest.raises(DataError, match=f"too few images to set some aside for {split}: tiny.*--{split}-data"):
        open_data(str(tmp_path))


def test_three_images_a_class_are_enough(tmp_path: Path) -> None:
    data = open_data(str(make_folders(tmp_path, count=3)))
    assert (len(data.train), len(data.val), len(data.test)) == (3, 3, 3)


def spoil(root: Path) -> None:
    """One image cut off, one that is text, one that is empty."""
    truncate(root / "dark" / "1.png")
    (root / "grey" / "2.png").write_text("not an image")
    (root / "light" / "3.png").write_bytes(b"")


def test_unreadable_images_are_all_listed_and_refused(tmp_path: Path) -> None:
    spoil(make_folders(tmp_path, count=10))
    with pytest.raises(DataError, match="--skip-bad-images") as caught:
        open_data(str(tmp_path))
    text = str(caught.value)
    assert text.startswith("3 of 30 images cannot be read:")
    assert all(name in text for name in ("dark/1.png: ", "grey/2.png: ", "light/3.png: "))
    assert "dark/0.png" not in text


def test_a_long_list_of_unreadable_images_is_cut(tmp_path: Path) -> None:
    make_folders(tmp_path, count=10)
    for path in tmp_path.glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="30 of 30 images cannot be read") as caught:
        open_data(str(tmp_path))
    assert str(caught.value).count(".png: ") == 20


def test_skip_bad_images_leaves_them_out_and_says_so(tmp_path: Path) -> None:
    spoil(make_folders(tmp_path, count=10))
    data = open_data(str(tmp_path), skip_bad_images=True)
    left = {*names(data.train), *names(data.val), *names(data.test)}
    assert len(left) == 27
    assert not left & {"dark/1.png", "grey/2.png", "light/3.png"}
    assert data.notes == ("Skipped 3 unreadable images.",)


def test_a_class_whose_images_are_all_unreadable_is_an_error_even_when_they_are_skipped(tmp_path: Path) -> None:
    make_folders(tmp_path)
    for path in (tmp_path / "grey").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no images of grey"):
        open_data(str(tmp_path), skip_bad_images=True)


def test_good_images_have_no_notes(images: Path) -> None:
    assert open_data(str(images)).notes == ()


@pytest.mark.parametrize("split", ["val", "test"])
def test_identical_bytes_in_train_and_another_split_are_noted(tmp_path: Path, split: str) -> None:
    make_splits(tmp_path, ["train", "val", "test"])
    for name in ("dark", "grey"):
        shutil.copy(tmp_path / "train" / name / "0.png", tmp_path / split / name / "copy.png")
    (note,) = open_data(str(tmp_path)).notes
    assert note.startswith(f"2 of 14 {split} images are also in train")


# The fingerprint


def test_the_fingerprint_does_not_depend_on_place_or_time(tmp_path: Path) -> None:
    first = make_folders(tmp_path / "first")
    before = open_data(str(first)).fingerprint
    second = tmp_path / "deeper" / "second"
    shutil.copytree(first, second)
    for path in second.rglob("*.png"):
        os.utime(path, (1, 1))
    assert open_data(str(second)).fingerprint == before


def test_the_fingerprint_changes_with_a_pixel(tmp_path: Path) -> None:
    make_folders(tmp_path)
    before = open_data(str(tmp_path)).fingerprint
    make_class(tmp_path / "new", 1, seed=99)
    (tmp_path / "new" / "0.png").replace(tmp_path / "dark" / "0.png")
    (tmp_path / "new").rmdir()
    assert open_data(str(tmp_path)).fingerprint != before


def test_the_fingerprint_changes_with_a_files_name(tmp_path: Path) -> None:
    make_splits(tmp_path, ["train", "val"])
    before = open_data(str(tmp_path)).fingerprint
    (tmp_path / "train" / "dark" / "0.png").rename(tmp_path / "train" / "dark" / "renamed.png")
    assert open_data(str(tmp_path)).fingerprint != before


def test_the_fingerprint_changes_with_an_images_class(tmp_path: Path) -> None:
    make_splits(tmp_path, ["train", "val"])
    before = open_data(str(tmp_path)).fingerprint
    (tmp_path / "train" / "dark" / "0.png").rename(tmp_path / "train" / "grey" / "moved.png")
    assert open_data(str(tmp_path)).fingerprint != before


def test_the_fingerprint_changes_with_a_classs_name(tmp_path: Path) -> None:
    make_folders(tmp_path)
    before = open_data(str(tmp_path)).fingerprint
    (tmp_path / "light").rename(tmp_path / "lighter")
    assert open_data(str(tmp_path)).fingerprint != before


def test_the_fingerprint_changes_with_an_images_split(tmp_path: Path) -> None:
    make_splits(tmp_path, ["train", "val"])
    before = open_data(str(tmp_path)).fingerprint
    (tmp_path / "train" / "dark" / "0.png").rename(tmp_path / "val" / "dark" / "moved.png")
    assert open_data(str(tmp_path)).fingerprint != before


def test_progress_counts_every_image_once(images: Path) -> None:
    told: list[tuple[int, int]] = []
    open_data(str(images), progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 36) for done in range(1, 37)]


# Images to evaluate on


def test_images_to_evaluate_on_are_the_test_split_if_there_is_one(tmp_path: Path) -> None:
    make_folders(tmp_path / "train", count=3, seed=1)
    make_folders(tmp_path / "test", count=2, seed=2)
    assert len(open_images(str(tmp_path), CLASSES)) == 6


def test_images_to_evaluate_on_may_be_plain_class_folders_of_some_classes(tmp_path: Path) -> None:
    found = open_images(str(make_folders(tmp_path, ["light"], count=2)), CLASSES)
    assert [sample.label for sample in found] == [2, 2]


def test_a_class_that_the_task_does_not_know_cannot_be_evaluated(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="classes that the task does not know: zebra"):
        open_images(str(make_folders(tmp_path, ["dark", "zebra"])), CLASSES)


# Tensors


def augmented(samples: Sequence[Sample], seed: int = 0, epoch: int = 0) -> Images:
    made = Images(samples, training_transform(INPUT, "standard"), seed)
    made.epoch = epoch
    return made


def batches(images: Images, workers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All pixels and labels of an epoch, in its order."""
    loader, sampler = training_loader(images, 6, workers)
    sampler.epoch = images.epoch
    pixels, labels = zip(*loader, strict=True)
    return torch.cat(pixels), torch.cat(labels)


def test_augmented_images_are_the_same_with_and_without_worker_processes(images: Path) -> None:
    samples = open_data(str(images)).train
    alone, shared = (batches(augmented(samples, epoch=2), workers) for workers in (0, 2))
    assert torch.equal(alone[0], shared[0])
    assert torch.equal(alone[1], shared[1])
    assert len(alone[1].unique()) == 3


def test_another_epoch_gives_other_augmentations_and_another_order(images: Path) -> None:
    samples = open_data(str(images)).train
    first, second = augmented(samples, epoch=0), augmented(samples, epoch=1)
    assert not torch.equal(first[0][0], second[0][0])
    orders = []
    for made in (first, second):
        _, sampler = training_loader(made, 6, 0)
        sampler.epoch = made.epoch
        orders.append(list(sampler))
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(len(samples)))


def test_another_seed_gives_other_augmentations(images: Path) -> None:
    samples = open_data(str(images)).train
    assert not torch.equal(augmented(samples, seed=0)[0][0], augmented(samples, seed=1)[0][0])


def test_an_augmentation_does_not_depend_on_what_was_loaded_before(images: Path) -> None:
    samples = open_data(str(images)).train
    forwards, backwards = augmented(samples), augmented(samples)
    seen = [forwards[index][0] for index in range(6)]
    assert all(torch.equal(backwards[index][0], seen[index]) for index in reversed(range(6)))


def test_images_of_an_evaluation_are_not_augmented(images: Path) -> None:
    samples = open_data(str(images)).test
    plain = Images(samples, evaluation_transform(INPUT))
    first = plain[0][0]
    plain.epoch = 5
    assert torch.equal(plain[0][0], first)
    assert first.shape == (3, 24, 24)


def test_augmenting_leaves_the_global_random_states_as_they_were(images: Path) -> None:
    made = augmented(open_data(str(images)).train)
    torch.manual_seed(1)
    random.seed(1)
    numpy.random.seed(1)
    before = torch.random.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    for index in range(4):
        made[index]
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert numpy.random.get_state()[1].tolist() == before[2]


def test_splitting_leaves_the_global_random_state_as_it_was(images: Path) -> None:
    random.seed(1)
    before = random.getstate()
    open_data(str(images))
    assert random.getstate() == before


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_have_channels_last_in_memory(images: Path, workers: int) -> None:
    """Convolutions keep to it through a whole network, and are faster so."""
    made = augmented(open_data(str(images)).train)
    for loader in (training_loader(made, 6, workers)[0], evaluation_loader(made, 6, workers)):
        for pixels, _ in loader:
            assert not pixels.is_contiguous()
            assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_a_last_smaller_batch_is_left_out_of_an_epoch(images: Path) -> None:
    made = augmented(open_data(str(images)).train[:13])
    loader, _ = training_loader(made, 6, 0)
    assert [len(labels) for _, labels in loader] == [6, 6]


def test_fewer_images_than_a_batch_make_one_smaller_batch(images: Path) -> None:
    made = augmented(open_data(str(images)).train[:5])
    loader, _ = training_loader(made, 6, 0)
    assert [len(labels) for _, labels in loader] == [5]


# Images kept in memory


class Counted:
    """Gives the bytes of a file, and counts how often in the process that it is in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.times = 0

    def __call__(self) -> bytes:
        self.times += 1
        return self.path.read_bytes()


@pytest.fixture
def mixed_sizes(tmp_path: Path) -> list[Sample]:
    """Twelve images, no two of one size, some grey or with a palette."""
    chance = numpy.random.default_rng(5)
    samples = []
    for number in range(12):
        picture = Image.fromarray(chance.integers(0, 256, (20 + number, 40 - number, 3), dtype="uint8"))
        picture = picture.convert(("RGB", "L", "P")[number % 3])
        picture.save(tmp_path / f"{number}.png")
        samples.append(Sample(f"{number}.png", number % 3, Counted(tmp_path / f"{number}.png")))
    return samples


def epochs(images: Images, workers: int, count: int = 3) -> list[torch.Tensor]:
    """The pixels of some epochs from one loader."""
    loader, sampler = training_loader(images, 4, workers)
    found = []
    for epoch in range(count):
        sampler.epoch = images.epoch = epoch
        found.append(torch.cat([pixels for pixels, _ in loader]))
    return found


@pytest.mark.parametrize("augment", ["standard", "none"])
@pytest.mark.parametrize("bytes_to_keep", [0, 9000, 10**7], ids=["nothing kept", "some kept", "all kept"])
@pytest.mark.parametrize("workers", [0, 2])
def test_kept_images_change_no_bit(mixed_sizes: list[Sample], augment: str, bytes_to_keep: int, workers: int) -> None:
    transform = training_transform(INPUT, augment)
    plain = epochs(Images(mixed_sizes, transform, 3), 0)
    kept = Images(mixed_sizes, transform, 3, fixed=augment == "none", room=bytes_to_keep)
    for expected, found in zip(plain, epochs(kept, workers), strict=True):
        assert torch.equal(expected, found)
    assert not torch.equal(plain[0], plain[1]), "epochs differ, in their order if in nothing else"
    assert kept.cache.used <= bytes_to_keep
    assert (kept.cache.used > 0) == (bytes_to_keep > 0)


@pytest.mark.parametrize("fixed", [True, False])
def test_an_image_that_is_kept_is_decoded_once(mixed_sizes: list[Sample], fixed: bool) -> None:
    made = Images(mixed_sizes, evaluation_transform(INPUT), fixed=fixed, room=10**7)
    epochs(made, 0)
    assert [sample.read.times for sample in mixed_sizes] == [1] * 12
    pixels = sum(3 * (20 + number) * (40 - number) for number in range(12))
    assert made.cache.used == (12 * 4 * 3 * 24 * 24 if fixed else pixels)


def test_what_one_loader_process_decoded_the_others_and_this_one_have(mixed_sizes: list[Sample]) -> None:
    made = Images(mixed_sizes, training_transform(INPUT, "standard"), room=10**7)
    epochs(made, 2, count=1)
    assert [sample.read.times for sample in mixed_sizes] == [0] * 12, "they decoded, not this process"
    epochs(made, 0, count=1)
    assert [sample.read.times for sample in mixed_sizes] == [0] * 12


def test_images_that_do_not_fit_are_decoded_each_time(mixed_sizes: list[Sample]) -> None:
    made = Images(mixed_sizes, training_transform(INPUT, "standard"), room=3 * 20 * 40 + 3 * 21 * 39)
    for _ in range(3):
        for index in range(12):
            made[index]
    assert [sample.read.times for sample in mixed_sizes] == [1, 1] + [3] * 10
    assert made.cache.used == made.cache.limit


def test_changing_a_tensor_leaves_the_kept_one_alone(mixed_sizes: list[Sample]) -> None:
    made = Images(mixed_sizes, evaluation_transform(INPUT), fixed=True, room=10**7)
    first = made[0][0].clone()
    for _ in range(2):
        made[0][0].zero_()
        assert torch.equal(made[0][0], first)


def test_a_cache_goes_to_a_spawned_process_empty() -> None:
    full = Cache(2, 100, "uint8")
    full.put(0, numpy.ones((1, 2, 3), "uint8"))
    empty = pickle.loads(pickle.dumps(full))
    empty.put(1, numpy.ones((1, 2, 3), "uint8"))
    assert (full.used, empty.used, empty.get(0), empty.get(1)) == (6, 0, None, None)


def test_a_quarter_of_the_free_memory_is_for_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "free_memory", lambda: 8000)
    assert (room(None, 1), room(None, 2), room(600, 2), room(0, 1)) == (2000, 1000, 300, 0)


@pytest.mark.parametrize(
    ("limit", "free"),
    [("5000", 5000 - 3000 + 1500), ("max", None), ("1000", 0)],
    ids=["a limit", "no limit", "over the limit"],
)
def test_a_containers_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, free: int | None
) -> None:
    monkeypatch.setattr(caches, "GROUPS", tmp_path)
    monkeypatch.setattr(caches, "_groups", lambda: [tmp_path])
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 1500\nactive_file 700\ninactive_file 800\n")
    machine = 10**6 if free is None else free
    monkeypatch.setattr(caches.psutil, "virtual_memory", lambda: SimpleNamespace(available=10**6))
    assert free_memory() == machine


@pytest.mark.filterwarnings("ignore")
def test_a_data_set_that_can_only_be_iterated_is_read_once(images: Path, tmp_path: Path) -> None:
    """timm's ``wds`` scheme: tar shards, and a file that says which split they are."""
    splits = {}
    for split, numbers in {"train": range(6), "validation": range(6, 9), "test": range(9, 12)}.items():
        shard = tmp_path / f"{split}.tar"
        with tarfile.open(shard, "w") as archive:
            for label, name in enumerate(("dark", "grey", "light")):
                for number in numbers:
                    for ending, content in (
                        ("png", (images / name / f"{number}.png").read_bytes()),
                        ("cls", str(label).encode()),
                    ):
                        member = tarfile.TarInfo(f"{label}{number:03d}.{ending}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
        size = 3 * len(numbers)
        splits[split] = {
            "name": split,
            "filenames": [shard.name],
            "num_samples": size,
            "shard_lengths": [size],
            "alt_label": "",
        }
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    found = open_data(f"wds/shapes@{tmp_path}")
    assert found.classes == ("0", "1", "2")
    assert [len(split) for split in (found.train, found.val, found.test)] == [18, 9, 9]
    assert sorted(sample.label for sample in found.test) == [0] * 3 + [1] * 3 + [2] * 3
    assert found.train[0].image().size == (32, 32)
    assert found.fingerprint == open_data(f"wds/shapes@{tmp_path}").fingerprint
