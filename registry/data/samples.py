"""Labelled images, and the splits they come in."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import DataError
from .pixels import read_rgb, reason

if TYPE_CHECKING:
    from PIL import Image


LISTED = 10  # names in a message


@dataclass(frozen=True)
class Sample:
    """One image that can be opened again and again.

    Attributes:
        name: for messages and the fingerprint: a path relative to its split, or an index.
        label: index into the classes.
        read: gives the file's bytes, or a decoded image for sources that have no files.
        file: the image's file with all links resolved; empty for sources that have no files.
    """

    name: str
    label: int
    read: Callable[[], bytes | Image.Image]
    file: str = ""

    def content(self) -> bytes | Image.Image:
        """The file's bytes, or the decoded image of a source that has no files. Raises DataError."""
        try:
            return self.read()
        except (OSError, ValueError) as error:
            raise DataError(f"{self.name}: {reason(error)}.") from error

    def image(self) -> Image.Image:
        """The decoded image in RGB. Raises DataError if it cannot be decoded."""
        return read_rgb(self.content(), self.name)


@dataclass(frozen=True)
class Split:
    """Images of one split as they were found.

    Attributes:
        classes: in the order of the labels.
        where: for messages.
        folders: whether they are files in class folders, which may be read by several threads at once.
        notes: what a user should know, such as files that were left out.
        empty: classes without images, with what their folders hold instead.
    """

    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    where: str
    folders: bool = False
    notes: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()

    def labelled(self, classes: Sequence[str], unknown: str) -> Split:
        """The same images with the labels that ``classes`` give them; names match in any Unicode form and case.

        Raises DataError for a class with images that is none of ``classes``; ``unknown`` says what it is then.
        """
        labels = {same(name): label for label, name in enumerate(classes)}
        labels |= {name: label for label, name in enumerate(classes)}  # a task may have both a and A, if by a scheme
        numbers = [labels.get(name, labels.get(same(name))) for name in self.classes]
        filled = {sample.label for sample in self.samples}
        if strangers := [name for label, name in enumerate(self.classes) if numbers[label] is None and label in filled]:
            raise DataError(f"{self.where} has {listed(strangers)}, {unknown}.")
        samples = tuple(
            replace(sample, label=label) for sample in self.samples if (label := numbers[sample.label]) is not None
        )
        return replace(self, classes=tuple(classes), samples=samples)


def same(name: str) -> str:
    """What names have in common that differ in Unicode form or case only."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def listed(names: Iterable[str]) -> str:
    """Names for a message, cut where they are many."""
    first = list(names)
    return ", ".join(first[:LISTED]) + (f" and {len(first) - LISTED} more" if len(first) > LISTED else "")
