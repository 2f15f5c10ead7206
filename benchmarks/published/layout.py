"""Looks at the data of a protocol before hours are spent on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .protocols import Dataset, Protocol


def problems(protocol: Protocol, data: Path) -> Iterator[str]:
    """What keeps a protocol from running on a folder, each a sentence that says what to put where."""
    if not data.is_dir():
        yield f"There is no folder {data}."
        return
    for task in protocol.tasks:
        yield from _problems(task, protocol.tested_on, data / task.name)


def _problems(task: Dataset, tested_on: str, folder: Path) -> Iterator[str]:
    found: dict[str, set[str]] = {}
    for split in ("train", tested_on):
        if not (folder / split).is_dir():
            yield f"{task.name}: put its images into {folder / split}/CLASS/, one folder for each class."
            continue
        found[split] = classes(folder / split)
        if not found[split]:
            yield f"{task.name}: {folder / split} has no class folders."
    if len(found) == 2 and all(found.values()) and found["train"] != found[tested_on]:
        odd = sorted(found["train"] ^ found[tested_on])
        yield f"{task.name}: train and {tested_on} have different classes, such as {', '.join(odd[:3])}."


def differences(protocol: Protocol, data: Path) -> Iterator[str]:
    """Where complete data is not what the paper used: it runs, but its figures are not comparable."""
    for task in protocol.tasks:
        folder = data / task.name
        facts = (
            ("classes", len(classes(folder / "train")), task.classes),
            ("training images", images(folder / "train"), task.train),
            (f"{protocol.tested_on} images", images(folder / protocol.tested_on), task.test),
        )
        for what, here, published in facts:
            if here != published:
                yield f"{task.name}: {here:,} {what}, the published split has {published:,}."


def classes(split: Path) -> set[str]:
    """Names of the class folders of a split."""
    return {entry.name for entry in os.scandir(split) if entry.is_dir()}


def images(split: Path) -> int:
    """How many files are in the class folders of a split."""
    return sum(entry.is_file() for name in classes(split) for entry in os.scandir(split / name))
