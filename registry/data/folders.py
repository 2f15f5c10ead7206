"""Class folders: the top-level folders are the classes, whatever lies below them.

Names are compared in Unicode's form NFC and sorted as people number things (``class2`` before ``class10``), so classes
have the same labels in every process and on every machine.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..errors import DataError
from ..units import counted
from .pixels import endings
from .samples import Sample, Split, listed, same

# What operating systems, file servers and editors leave in folders for themselves, beside names that begin with a dot.
LITTER = {
    "#recycle",
    "$recycle.bin",
    "@eadir",
    "__macosx",
    "__pycache__",
    "desktop.ini",
    "ehthumbs.db",
    "ehthumbs_vista.db",
    "icon\r",
    "lost+found",
    "network trash folder",
    "picasa.ini",
    "system volume information",
    "temporary items",
    "thumbs.db",
}


@dataclass(frozen=True)
class Files:
    """The files below some folders.

    Attributes:
        images: name below the folder, and path with all links resolved; sorted by name.
        others: how many files are no images, by the ending of their names.
    """

    images: tuple[tuple[PurePath, str], ...]
    others: Counter[str]


def read_folders(root: Path) -> Split:
    """A folder of class folders as one split.

    Raises:
        DataError: if it has no class folders, one whose name is not UTF-8, or a folder that cannot be read.
    """
    classes, notes = _classes(subfolders(root))
    loose = [entry.name for entry in entries(root) if _holds(entry.is_file)]
    if not classes:
        what = ", only images" if any(map(is_image, loose)) else ""
        raise DataError(f"{root} has no class folders{what}. Put the images of each class into a folder of its own.")
    files = {name: files_below(folders) for name, folders in classes.items()}
    empty = tuple(name + _endings(content.others, " ({})") for name, content in files.items() if not content.images)
    samples = tuple(
        Sample(unicodedata.normalize("NFC", PurePath(name, below).as_posix()), label, Path(file).read_bytes, file)
        for label, (name, content) in enumerate(files.items())
        for below, file in content.images
    )
    if outside := sum(map(is_image, loose)):
        notes.append(f"Left out {counted(outside, 'image')} in {root} outside of class folders.")
    others = Counter(_ending(name) for name in loose if not is_image(name))
    for content in files.values():
        others.update(content.others)
    if others:
        notes.append(f"Left out {counted(others.total(), 'file')} in {root} other than images: {_endings(others)}.")
    return Split(tuple(classes), samples, str(root), folders=True, notes=tuple(notes), empty=empty)


def subfolders(root: Path) -> list[Path]:
    """The folders in a folder, each once: no link to one of them, to ``root`` or to what ``root`` is in.

    Raises DataError if it cannot be read.
    """
    folders = [entry for entry in entries(root) if _holds(entry.is_dir)]
    real = root.resolve()
    taken = {str(real / entry.name) for entry in folders if not entry.is_symlink()}
    kept = []
    for entry in folders:
        target = os.path.realpath(entry.path)
        if entry.is_symlink() and (target in taken or real.is_relative_to(target)):
            continue
        taken.add(target)
        kept.append(Path(entry.path))
    return kept


def files_below(folders: Sequence[Path]) -> Files:
    """The files below these folders, each once: links are followed, but not to what is found without them.

    Raises DataError if a folder cannot be read.
    """
    others: Counter[str] = Counter()
    images: dict[str, PurePath] = {}
    links: dict[str, PurePath] = {}
    for name, file, is_link in _walk(folders):
        if not is_image(name.name):
            others[_ending(name.name)] += 1
        else:
            (links if is_link else images).setdefault(file, name)
    ranked = sorted(((name, file) for file, name in (links | images).items()), key=lambda image: _rank(image[0]))
    return Files(tuple(ranked), others)


def _walk(folders: Sequence[Path]) -> Iterator[tuple[PurePath, str, bool]]:
    """Every file below: its name, its path with links resolved, and whether it is a link itself.

    What a link leads to comes last, so that folders have the names that they have without one.
    """
    todo = deque((folder, PurePath()) for folder in folders)
    linked: deque[tuple[Path, PurePath]] = deque()
    seen: set[Path] = set()
    while todo or linked:
        folder, below = (todo or linked).popleft()
        real = folder.resolve()
        if real in seen:
            continue
        seen.add(real)
        for entry in entries(folder):
            name, is_link = below / entry.name, entry.is_symlink()
            if _holds(entry.is_dir):
                if not is_link:
                    todo.append((Path(entry.path), name))
                elif not real.is_relative_to(os.path.realpath(entry.path)):
                    linked.append((Path(entry.path), name))
            elif is_link and not Path(entry.path).exists():
                yield name, entry.path, True  # a dangling link: reading it says so
            elif _holds(entry.is_file):
                yield name, os.path.realpath(entry.path) if is_link else f"{real}{os.sep}{entry.name}", is_link


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, litter left out, in the order of the names. Raises DataError if it cannot be read."""
    try:
        with os.scandir(folder) as scanned:
            return sorted(
                (entry for entry in scanned if not is_litter(entry.name)), key=lambda entry: order(entry.name)
            )
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from error


def is_litter(name: str) -> bool:
    """Whether a program put a file or folder of this name there for itself."""
    return name.startswith((".", "~$")) or name.lower() in LITTER


def is_image(name: str) -> bool:
    """Whether the ending of a file's name is that of a format that can be read."""
    return _ending(name) in endings()


def order(name: str) -> tuple[list[str | int], str, str]:
    """A key to sort names by: numbers by their value, letters whatever their case. No two names have the same."""
    parts = re.split(r"(\d+)", same(name))
    numbered = [int(part) if index % 2 else part for index, part in enumerate(parts)]
    return numbered, unicodedata.normalize("NFC", name), name


def _rank(name: PurePath) -> list[tuple[list[str | int], str, str]]:
    return [order(part) for part in name.parts]


def _holds(asked: Callable[[], bool]) -> bool:
    try:
        return asked()
    except OSError:  # a link to itself
        return False


def _classes(folders: Sequence[Path]) -> tuple[dict[str, list[Path]], list[str]]:
    """Folders by class, in the order of the labels, and notes on names that are taken for one."""
    alike: dict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        try:
            folder.name.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(folder.name).decode("ascii", "backslashreplace")
            raise DataError(
                f"The name of a class folder in {folder.parent} is not UTF-8: {shown}. Rename it."
            ) from None
        alike[same(folder.name)].append(folder)
    classes, notes = {}, []
    for members in alike.values():
        names = sorted({unicodedata.normalize("NFC", folder.name) for folder in members})
        classes[names[0]] = members
        if len(names) > 1:
            notes.append(
                f"{' and '.join(names)} in {members[0].parent} differ in case only and are taken as one class, "
                f"{names[0]}. Rename them if they are not the same."
            )
    return classes, notes


def _ending(name: str) -> str:
    return PurePath(name).suffix.lower()


def _endings(others: Counter[str], form: str = "{}") -> str:
    """``12 .txt, 3 .heic``, the most frequent first; nothing for none."""
    ranked = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    return form.format(listed(f"{count} {ending or 'without an ending'}" for ending, count in ranked)) if ranked else ""
