"""The suite's tasks: image folders that come out the same, bit for bit, each time they are made.

Every image has a random stream of its own, from the task, the split, the class and its number: more test images change
no training image, and no image of one split is drawn from the stream of another.
"""

from __future__ import annotations

import string
import time
import unicodedata
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy
from numpy.random import Generator
from PIL import Image

from taps_registry.cli.demo.pictures import FAMILIES

from . import drawing
from .drawing import Array

SPLITS = ("train", "val", "test")
GREEK = "βγδεζθλμξπστφχψω"  # letters that Latin does not have
CYRILLIC = "бвгджзийлптфцчшэюя"
TELLING = "aegkrtyGQR"  # letters that differ between typefaces
UPRIGHT = "ABCDEFGJKLPQRTVYabcdefghkmrty234579"  # characters that look otherwise upside down or on their side


@dataclass(frozen=True)
class Size:
    """How large the suite is.

    Attributes:
        pixels: width and height of the images.
        train, val, test: images of a task in each split, about: every class has as many as the others.
        letters: images a class that the bases are trained on.
    """

    pixels: int
    train: int
    val: int
    test: int
    letters: int

    def images(self, split: str) -> int:
        """Images of a task in a split."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]


SIZES = {
    "tiny": Size(pixels=32, train=48, val=24, test=24, letters=4),
    "cpu": Size(pixels=32, train=800, val=200, test=1000, letters=200),
    "gpu": Size(pixels=64, train=4000, val=1000, test=4000, letters=600),
}


@dataclass(frozen=True)
class Picture:
    """One image: the class it shows, and its pixels ``(side, side, 3)`` uint8."""

    label: str
    pixels: Array


class Source(ABC):
    """Where the images of a task come from.

    Attributes:
        name: of the task.
        far: whether it has little in common with what the bases were trained on.
    """

    name: str
    far: bool = False

    @abstractmethod
    def pictures(self, split: str, size: Size) -> Iterator[Picture]:
        """The images of one of ``SPLITS``."""

    def stream(self, split: str, label: int, index: int) -> Generator:
        """The random stream of one image."""
        return numpy.random.default_rng((zlib.crc32(self.name.encode()), SPLITS.index(split), label, index))


Draw = Callable[[int, int, Generator], Array]
"""From a class's number, the side in pixels and a random stream to the pixels of an image."""


@dataclass(frozen=True)
class Drawn(Source):
    """A task whose every image is drawn."""

    name: str
    classes: tuple[str, ...]
    draw: Draw
    far: bool = False

    def pictures(self, split: str, size: Size) -> Iterator[Picture]:
        for label, title in enumerate(self.classes):
            for index in range(max(1, round(size.images(split) / len(self.classes)))):
                yield Picture(title, self.draw(label, size.pixels, self.stream(split, label, index)))


@dataclass(frozen=True)
class Scans(Source):
    """Handwritten digits: scikit-learn's 1,797 scans of 8x8 pixels, each in one split only, on clouded paper.

    Once its scans are used up, a split begins again with them, otherwise placed and coloured.
    """

    name: str = "digits"
    far: bool = False

    def pictures(self, split: str, size: Size) -> Iterator[Picture]:
        from sklearn.datasets import load_digits

        found = load_digits()
        order = numpy.random.default_rng(0).permutation(len(found.target))
        mine = numpy.split(order, (700, 900))[SPLITS.index(split)]
        for index in range(size.images(split)):
            chosen = mine[index % len(mine)]
            label, rng = int(found.target[chosen]), self.stream(split, 0, index)
            mask = drawing.scan(found.images[chosen] / 16, size.pixels, rng, wobble=25)
            yield Picture(str(label), drawing.scene(mask, rng, clutter=2, contrast=0.35, noise=0.04))


def alphabet(name: str, letters: str) -> Drawn:
    """Which letter it is."""

    def draw(label: int, side: int, rng: Generator) -> Array:
        mask = drawing.glyph(letters[label], any_family(rng), side, rng, wobble=45)
        return drawing.scene(mask, rng, clutter=2, contrast=0.4, noise=0.04)

    titles = (unicodedata.name(letter).rpartition("SMALL LETTER ")[2] for letter in letters)
    return Drawn(name, tuple(title.lower().replace(" ", "-") for title in titles), draw)


def rotations(steps: int = 8) -> Drawn:
    """By how much a Latin letter or digit is turned."""

    def draw(label: int, side: int, rng: Generator) -> Array:
        letter = UPRIGHT[int(rng.integers(len(UPRIGHT)))]
        mask = drawing.glyph(letter, any_family(rng), side, rng, turn=360 / steps * label, wobble=12)
        return drawing.scene(mask, rng, clutter=1, contrast=0.4, noise=0.03)

    return Drawn("rotations", tuple(f"{round(360 / steps * step):03d}" for step in range(steps)), draw)


def typefaces() -> Drawn:
    """In which typeface a letter is set: what the bases learnt to overlook."""
    families = ("sans", "sans-bold", "sans-oblique", "serif", "serif-bold", "mono", "times", "times-italic")

    def draw(label: int, side: int, rng: Generator) -> Array:
        letter = TELLING[int(rng.integers(len(TELLING)))]
        mask = drawing.glyph(letter, families[label], side, rng, wobble=3, sizes=(0.8, 0.95))
        return drawing.scene(mask, rng, clutter=0, contrast=0.4, noise=0.02)

    return Drawn("typefaces", families, draw)


def counts(most: int = 7) -> Drawn:
    """How many spots there are, of any size and colour."""

    def draw(label: int, side: int, rng: Generator) -> Array:
        ground = drawing.colour(rng)
        pixels = drawing.blend(drawing.clouds(side, 3, rng), ground, drawing.colour(rng) * 0.3 + ground * 0.7)
        for mask in drawing.spots(label + 1, side, rng):
            pixels = drawing.over(pixels, mask, drawing.apart(ground, rng, 0.25))
        return drawing.finished(pixels, rng, 0.05)

    return Drawn("counts", tuple(str(number + 1) for number in range(most)), draw, far=True)


def textures() -> Drawn:
    """Which pattern is behind a letter that means nothing."""
    titles = tuple(drawing.TEXTURES)

    def draw(label: int, side: int, rng: Generator) -> Array:
        pattern = drawing.TEXTURES[titles[label]]
        field = pattern(*drawing.turned_grid(side, rng), rng.uniform(2.0, 4.0))
        ground = drawing.colour(rng)
        pixels = drawing.blend(field, ground, drawing.apart(ground, rng, 0.3))
        mask = drawing.glyph(string.ascii_letters[int(rng.integers(52))], any_family(rng), side, rng)
        pixels = pixels + (drawing.colour(rng) - pixels) * mask[..., None]
        return drawing.finished(pixels, rng, 0.05)

    return Drawn("textures", titles, draw, far=True)


def shapes() -> Drawn:
    """Which figure it is, at any angle."""
    titles = tuple(drawing.SHAPES)

    def draw(label: int, side: int, rng: Generator) -> Array:
        mask = drawing.polygon(drawing.SHAPES[titles[label]], side, rng)
        return drawing.scene(mask, rng, clutter=2, contrast=0.4, noise=0.04)

    return Drawn("shapes", titles, draw, far=True)


def latin() -> Drawn:
    """What the bases are trained on: Latin letters and digits, little disturbed."""
    characters = string.ascii_letters + string.digits

    def draw(label: int, side: int, rng: Generator) -> Array:
        mask = drawing.glyph(characters[label], any_family(rng), side, rng)
        return drawing.scene(mask, rng, clutter=1, contrast=0.3, noise=0.05)

    return Drawn("latin", tuple(f"{ord(character):03d}" for character in characters), draw)


def any_family(rng: Generator) -> str:
    """One of the typefaces."""
    return tuple(FAMILIES)[int(rng.integers(len(FAMILIES)))]


TASKS: dict[str, Source] = {
    task.name: task
    for task in (
        Scans(),
        alphabet("greek", GREEK),
        alphabet("cyrillic", CYRILLIC),
        rotations(),
        typefaces(),
        textures(),
        shapes(),
        counts(),
    )
}


def write(source: Source, folder: Path, size: Size, splits: Iterable[str] = SPLITS) -> Path:
    """The images of a task as ``folder/NAME/SPLIT/CLASS/NNNN.png``, unless they are there.

    Returns:
        The task's folder, as ``taps-registry add-task --data`` takes it.
    """
    made = folder / source.name
    if made.exists():
        return made
    draft = folder / f".{source.name}.{time.time_ns()}"
    for split in splits:
        counts: dict[str, int] = {}
        for picture in source.pictures(split, size):
            number = counts[picture.label] = counts.get(picture.label, -1) + 1
            path = draft / split / picture.label / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.pixels).save(path)
    draft.rename(made)
    return made
