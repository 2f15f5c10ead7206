"""Where a task's images come from: folders, or the data sets that timm knows by a scheme.

A folder is read in one of two ways. ``splits``: it holds ``train`` and perhaps ``val`` and ``test`` (or their usual
synonyms), each with class folders. ``classes``: its folders are the classes. Which one it is shows in what it holds;
``splits@DIR`` and ``classes@DIR`` say it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import DataError
from .folders import files_below, read_folders, subfolders
from .samples import Split, listed, same
from .schemes import SCHEMES, read_scheme

SYNONYMS = {"train": ("train", "training"), "val": ("val", "validation", "valid"), "test": ("test", "testing")}
OPTIONS = {"train": "--data", "val": "--val-data", "test": "--test-data"}
CLASSES, SPLITS = "classes", "splits"
# timm's names for class folders; it would give the same images for every split.
PLAIN = ("torch/image_folder", "torch/folder")


def read_source(data: str) -> dict[str, Split]:
    """The splits that ``data`` has by itself, by name; only ``all`` where it has none.

    Args:
        data: a folder, ``classes@DIR``, ``splits@DIR``, or ``SCHEME/NAME[@ROOT]`` of timm's.

    Raises:
        DataError: if there is nothing of this name, or it is not made as its reading needs it.
    """
    reading, root = split_reading(data)
    path = Path(root)
    if path.is_dir():
        return _read(path, reading)
    if path.exists():
        raise DataError(f"{path} is a file; unpack it, and name the folder that holds a folder for each class.")
    if not reading and data.partition("/")[0].lower() in SCHEMES and "/" in data:
        return read_scheme(data)
    raise DataError(
        f"There is no folder {root}. --data takes a folder of class folders, or "
        f"SCHEME/NAME[@ROOT] with one of timm's schemes: {', '.join(SCHEMES)}."
    )


def split_reading(data: str) -> tuple[str, str]:
    """How a folder is to be read, ``classes``, ``splits`` or "" for what it looks like, and the folder."""
    before, at, root = data.partition("@")
    if at and before.lower() in PLAIN:
        return "", root
    return (before, root) if at and before in (CLASSES, SPLITS) and not Path(data).exists() else ("", data)


def absolute(data: str) -> str:
    """``data`` with a path that means the same in another working directory; the names of schemes stay as they are."""
    if not data or Path(data).exists():
        return str(Path(data).absolute()) if data else data
    before, at, root = data.partition("@")
    return f"{before}@{Path(root).absolute()}" if at and root and Path(root).exists() else data


def _read(root: Path, reading: str) -> dict[str, Split]:
    """A folder's splits. Raises DataError."""
    parts, others, notes = _split_folders(root)
    if reading == CLASSES or (not reading and not parts):
        return {"all": read_folders(root)}
    if not reading and (filled := [folder for folder in others if files_below([folder]).images]):
        if not _same_classes(parts, filled):
            return {"all": _with_notes(read_folders(root), [_classes_note(root, parts)])}
        notes.append(
            f"{listed(folder.name for folder in filled)} in {root} left out: read as splits, since "
            f"{listed(part.name for part in parts.values())} have the same classes. If they are classes: "
            f"--data {CLASSES}@{root}"
        )
    if "train" not in parts:
        has = f"{', '.join(part.name for part in parts.values())} but " if parts else ""
        raise DataError(
            f"{root} has {has}no train folder. Add one, name the folders with --data, --val-data and --test-data, or "
            f"if its folders are the classes: --data {CLASSES}@{root}"
        )
    splits = {name: read_folders(part) for name, part in parts.items()}
    return {**splits, "train": _with_notes(splits["train"], notes)}


def _split_folders(root: Path) -> tuple[dict[str, Path], list[Path], list[str]]:
    """The folders named like splits by split, all other folders, and notes on two for one split."""
    parts: dict[str, Path] = {}
    others, notes = [], []
    names = {name: split for split, synonyms in SYNONYMS.items() for name in synonyms}
    for folder in subfolders(root):
        split = names.get(folder.name.lower())
        if split is None:
            others.append(folder)
        elif split in parts:
            notes.append(
                f"{folder} left out: the {split} images are taken from {parts[split]}. To take the others: "
                f"{OPTIONS[split]} {folder}"
            )
        else:
            parts[split] = folder
    return parts, others, notes


def _same_classes(parts: Mapping[str, Path], others: Sequence[Path]) -> bool:
    """Whether train and another split have two class folders or more in common, which no other folder has too."""
    within = {name: {same(folder.name) for folder in subfolders(part)} for name, part in parts.items()}
    train = within.pop("train", set())
    common = [train & names for names in within.values() if len(train & names) > 1]
    return bool(common) and not any(train & {same(folder.name) for folder in subfolders(part)} for part in others)


def _classes_note(root: Path, parts: Mapping[str, Path]) -> str:
    """What to say where folders named like splits are classes."""
    named = " ".join(f"{option} {parts[split]}" for split, option in OPTIONS.items() if split in parts)
    names = listed(part.name for part in parts.values())
    return f"{names} in {root} taken for classes, since there are others beside. If they are splits: {named}"


def _with_notes(split: Split, notes: Sequence[str]) -> Split:
    return replace(split, notes=(*notes, *split.notes))
