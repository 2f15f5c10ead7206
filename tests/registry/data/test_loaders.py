"""Batches of images: the same under the same seed, however they are loaded and kept."""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from PIL import Image

from taps_registry.registry.data import cache as caches
from taps_registry.registry.data.cache import Cache, free_memory, room
from taps_registry.registry.data.loaders import Images, evaluation_loader, training_loader
from taps_registry.registry.data.samples import Sample
from taps_registry.registry.data.splits import open_data
from taps_registry.registry.data.transforms import evaluation_transform, training_transform
from taps_registry.registry.data.workers import deaths_explained
from taps_registry.registry.errors import DataError
from taps_registry.registry.records import InputConfig

INPUT = InputConfig((3, 24, 24), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", 1.0, "center")


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


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_gone_is_one_line_whoever_wanted_to_read_it(images: Path, workers: int) -> None:
    sample = Sample("grey/gone.png", 0, (images / "gone.png").read_bytes)
    loader = evaluation_loader(Images([sample], evaluation_transform(INPUT)), 1, workers)
    with pytest.raises(DataError, match=r"^grey/gone\.png: No such file or directory\.$"), deaths_explained():
        list(loader)
