"""Opening a task's images: how they are split, and what is refused."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from image_folders import CLASSES, make_class, make_folders, make_splits, names, truncate

from taps_registry.registry.data.splits import open_data
from taps_registry.registry.errors import DataError

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
def test_a_class_missing_from_a_split_is_a_note(tmp_path: Path, split: str) -> None:
    make_splits(tmp_path, ["train", "val", "test"])
    shutil.rmtree(tmp_path / split / "grey")
    data = open_data(str(tmp_path))
    assert data.classes == CLASSES
    assert {sample.label for sample in getattr(data, split)} == {0, 2}
    assert data.notes == (f"The {split} split has no images of grey: its averages are over the other classes.",)


def test_an_empty_class_folder_of_a_split_is_a_note(tmp_path: Path) -> None:
    make_splits(tmp_path, ["train", "val"])
    shutil.rmtree(tmp_path / "val" / "grey")
    (tmp_path / "val" / "grey").mkdir()
    assert open_data(str(tmp_path)).notes == (
        "The val split has no images of grey: its averages are over the other classes.",
    )


def test_a_class_missing_from_train_is_an_error(tmp_path: Path) -> None:
    make_splits(tmp_path, ["train", "val"])
    shutil.rmtree(tmp_path / "train" / "grey")
    with pytest.raises(DataError, match=r"val has grey, which train lacks\."):
        open_data(str(tmp_path))


def test_a_split_without_any_image_is_an_error(tmp_path: Path) -> None:
    make_splits(tmp_path, ["train"])
    for name in CLASSES:
        (tmp_path / "val" / name).mkdir(parents=True)
    with pytest.raises(DataError, match=r"val has no images for val"):
        open_data(str(tmp_path))


def test_a_class_that_only_a_split_has_is_an_error(tmp_path: Path) -> None:
    make_splits(tmp_path, ["train", "val"])
    make_class(tmp_path / "val" / "zebra", 1, seed=5)
    with pytest.raises(DataError, match="has zebra, which train lacks"):
        open_data(str(tmp_path))


def test_splits_without_train_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has test, val but no train folder\..*--data classes@"):
        open_data(str(make_splits(tmp_path, ["val", "test"])))


@pytest.mark.parametrize(("count", "lacking"), [(1, ["val", "test"]), (2, ["val"])])
def test_a_class_with_too_few_images_to_split_is_trained_and_not_measured(
    tmp_path: Path, count: int, lacking: list[str]
) -> None:
    make_folders(tmp_path, count=10)
    make_class(tmp_path / "tiny", count, seed=7)
    data = open_data(str(tmp_path))
    assert any(sample.label == 3 for sample in data.train)
    for split in ("val", "test"):
        assert any(sample.label == 3 for sample in getattr(data, split)) == (split not in lacking)
        assert any(note.startswith(f"The {split} split has no images of tiny") for note in data.notes) == (
            split in lacking
        )


def test_images_too_few_for_any_split_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"too few images to set some aside for test.*--test-data"):
        open_data(str(make_folders(tmp_path, count=1)))


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
    assert note.startswith(f"2 {split} images of 14 also in train")


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
