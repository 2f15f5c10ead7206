"""Folders of images for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy
from PIL import Image

from taps_registry.registry.data.samples import Sample

CLASSES = ("dark", "grey", "light")


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
