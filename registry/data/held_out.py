"""Images to measure a finished task on: never those that it was trained with, unless that is asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, SettingsError
from .samples import Sample, Split
from .sources import read_source, split_reading
from .splits import TaskData, decode, open_data

TEST, VAL, TRAIN, ALL = "test", "val", "train", "all"
SPLITS = (TEST, VAL, TRAIN, ALL)


@dataclass(frozen=True)
class HeldOut:
    """Labelled images of one split: ``test``, ``val``, ``train``, or ``all`` of a folder without splits."""

    split: str
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trained:
    """What a task was trained with.

    Attributes:
        settings: of its run, such as ``data`` and ``seed``.
        fingerprint: of its images, as ``TaskData`` has it; empty if it is not known.
    """

    settings: Mapping[str, Any]
    fingerprint: str = ""

    def open(self, data: str) -> TaskData:
        """The images as the run split them, if they are those of ``data``. Raises DataError."""
        options = ("val_data", "test_data", "seed", "skip_bad_images")
        return open_data(data, **{name: self.settings[name] for name in options if name in self.settings})


def open_held_out(
    data: str, classes: Sequence[str], trained: Trained, split: str = "", *, skip_bad_images: bool = False
) -> HeldOut:
    """Labelled images to measure a task of these classes on, read as ``add_task`` reads them.

    By default those for testing, else those for validation, else all of a folder without splits. Of images that the
    task was trained with, those that its run had set aside. A run that skipped bad images had them skipped here too.

    Raises:
        SettingsError: for an unknown split.
        DataError: for unreadable images, a class that is none of ``classes``, or if there are no images of this split.
    """
    if split not in ("", *SPLITS):
        raise SettingsError(f"--split must be one of {', '.join(SPLITS)}, got {split!r}.")
    splits = {name: part.labelled(classes, "which the task does not know") for name, part in read_source(data).items()}
    groups = _by_use(splits, {} if split == ALL else _uses(data, splits, trained, split))
    if split == ALL:
        groups[ALL] = [sample for part in splits.values() for sample in part.samples]
    taken = split or next((name for name in (TEST, ALL, VAL) if groups[name]), "")
    if not groups[taken]:
        raise DataError(_nothing(data, taken, [name for name in SPLITS if groups[name]]))
    chosen = Split(tuple(classes), tuple(groups[taken]), data, all(part.folders for part in splits.values()))
    readable = decode({taken: chosen}, skip_bad_images or bool(trained.settings.get("skip_bad_images")))
    notes = (*(note for part in splits.values() for note in part.notes), *readable.notes)
    return HeldOut(taken, tuple(readable.samples[taken]), notes)


def _by_use(splits: Mapping[str, Split], uses: Mapping[str, str]) -> defaultdict[str, list[Sample]]:
    """Images by what they are for: what the run used them for, else the split that they are found in."""
    groups: defaultdict[str, list[Sample]] = defaultdict(list)
    for name, part in splits.items():
        fresh = TEST if name == ALL and any(sample.file in uses for sample in part.samples) else name
        for sample in part.samples:
            groups[uses.get(sample.file, fresh)].append(sample)
    return groups


def _uses(data: str, splits: Mapping[str, Split], trained: Trained, split: str) -> dict[str, str]:
    """The split that the run had each image in, by file; empty if it trained with none of those that are asked for.

    Only then are the run's images read again, which takes as long as before training.

    Raises:
        DataError: if the run had some of them, but its images have changed since.
    """
    place = str(trained.settings.get("data", ""))
    before = _files(place)
    first = next((name for name in (split, TEST, VAL) if name in splits), "")
    asked = [splits[first]] if first in (TEST, VAL) and split in ("", first) else splits.values()
    if before and not before & {sample.file for part in asked for sample in part.samples}:
        return {}
    if not before and ALL not in splits:
        return {}
    try:
        opened = trained.open(place if before else data)  # not where they were: these may be they, moved
        known = opened.fingerprint == trained.fingerprint
    except DataError:
        known = False
    if known:
        parts = {TRAIN: opened.train, VAL: opened.val, TEST: opened.test}
        return {sample.file: name for name, part in parts.items() for sample in part if sample.file}
    if before and ALL in splits:
        raise DataError(
            f"The images in {place} are not those that the task was trained with, so it is not known which of them it "
            f"has seen. Name a folder of other images, or measure on all of them with --split {ALL}."
        )
    return {}


def _files(data: str) -> set[str]:
    """The files in a folder that a run may have trained with; none if there is no such folder now."""
    if not Path(split_reading(data)[1]).is_dir():
        return set()
    try:
        parts = read_source(data)
        return {sample.file for name in (TRAIN, ALL) if name in parts for sample in parts[name].samples}
    except DataError:
        return set()


def _nothing(data: str, split: str, there: Sequence[str]) -> str:
    """What to say if there are no images of a split, given the splits that there are."""
    if split:
        return f"{data} has no images for --split {split}, only for {' and '.join(there)}."
    if there == [TRAIN]:
        return f"{data} has training images only. To measure on them nevertheless: --split {TRAIN}"
    return f"{data} has no images to measure on."
