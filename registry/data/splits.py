"""Opens a task's images: read, split with a seed, every image decoded once, and named by their contents.

Splits that the data have are taken as they are. Class folders without them are split 70/15/15 within each class. A
missing validation set is taken from the training images, never from the test images; a test set that is not there is
only taken from class folders without any splits.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..errors import DataError
from ..units import counted
from .pixels import read_rgb
from .samples import Sample, Split, listed
from .sources import read_source

SHARE = 0.15  # of the images of a class, for each split that has to be made
MOST = 20  # unreadable images that a message lists


@dataclass(frozen=True)
class TaskData:
    """A task's images.

    Attributes:
        classes: in the order of the labels.
        val: what the best epoch is chosen on.
        test: what the finished artifact is measured on; empty if there is none.
        fingerprint: SHA-256 over names, labels and contents of all images, split by split.
        notes: what a user should know, such as images that were skipped.
    """

    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()


Counted = Callable[[int, int], None]


def open_data(
    data: str,
    val_data: str = "",
    test_data: str = "",
    *,
    seed: int = 0,
    skip_bad_images: bool = False,
    progress: Counted = lambda done, total: None,
) -> TaskData:
    """Find, check, split and fingerprint the images of a task: a folder, or ``SCHEME/NAME[@ROOT]``.

    Splits that have to be made depend on ``seed``. Unreadable images are refused unless they are skipped. ``progress``
    is called with the number of images decoded so far and in all.

    Raises:
        DataError: for one class only, a class without training images, a class that only another split has, unreadable
            images.
    """
    labelled, divided = _read(data, val_data, test_data)
    train = labelled["train"]
    if len(train.classes) < 2:
        raise DataError(
            f"{train.where} has fewer than two classes ({', '.join(train.classes) or 'none'}); a task needs at least "
            "two."
        )
    if train.empty:
        raise DataError(
            f"{train.where} has classes without images: {listed(train.empty)}. Fill or delete these folders."
        )
    classes = train.classes
    labelled = {name: split.labelled(classes, "which train lacks") for name, split in labelled.items()}
    decoded = decode(labelled, skip_bad_images, progress)
    splits = decoded.samples
    if missing := _without_images(splits["train"], classes):
        raise DataError(f"The train split has no images of {listed(missing)}. Every class must have some.")
    wanted = {label: max(1, round(SHARE * n)) for label, n in Counter(s.label for s in splits["train"]).items()}
    if not divided:
        splits["train"], splits["test"] = _carve(splits["train"], wanted, seed, "test")
    if "val" not in splits:
        splits["train"], splits["val"] = _carve(splits["train"], wanted, seed + 1, "val")
    for name, samples in splits.items():
        if not samples:
            raise DataError(f"{labelled[name].where} has no images for {name}.")
    return TaskData(
        classes=classes,
        train=tuple(splits["train"]),
        val=tuple(splits["val"]),
        test=tuple(splits.get("test", ())),
        fingerprint=_fingerprint(splits, classes, decoded.digests),
        notes=(
            *(note for split in labelled.values() for note in split.notes),
            *decoded.notes,
            *_missing(splits, classes),
            *_leaks(splits, decoded.digests),
        ),
    )


def split_of(data: str, wanted: str) -> Split:
    """The images of ``data`` for one split: what it has for it, or all if it has no splits or none but ``train``.

    Raises DataError if it has other splits, but not this one.
    """
    splits = read_source(data)
    split = splits.get(wanted) or splits.get("all") or (splits["train"] if set(splits) == {"train"} else None)
    if split is None:
        raise DataError(f"{data} has {' and '.join(splits)} images, but none for {wanted}. Name the folder to take.")
    return split


def _read(data: str, val_data: str, test_data: str) -> tuple[dict[str, Split], bool]:
    """The splits by name, ``train`` among them, and whether the data are divided into splits."""
    splits = read_source(data)
    elsewhere = {name: split_of(place, name) for name, place in (("val", val_data), ("test", test_data)) if place}
    divided = "all" not in splits or bool(elsewhere)
    if "all" in splits:
        splits = {"train": splits["all"]}
    return {**splits, **elsewhere}, divided


@dataclass(frozen=True)
class Decoded:
    """Images that can be read.

    Attributes:
        samples: by split.
        digests: SHA-256 of each image's file, by id of the sample.
        notes: on images that were skipped.
    """

    samples: dict[str, list[Sample]]
    digests: dict[int, str]
    notes: tuple[str, ...] = ()


def decode(splits: Mapping[str, Split], skip: bool = False, progress: Counted = lambda done, total: None) -> Decoded:
    """Decode every image once: unreadable ones are refused or left out here, not met in the middle of training.

    Raises:
        DataError: listing the images that cannot be read, unless they are skipped.
    """
    every = [sample for split in splits.values() for sample in split.samples]
    digests: dict[int, str] = {}
    bad: list[str] = []
    threads = 4 if all(split.folders for split in splits.values()) else 1
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for done, (sample, digest) in enumerate(zip(every, pool.map(_try, every), strict=True), 1):
            progress(done, len(every))
            if isinstance(digest, DataError):
                bad.append(str(digest))
            else:
                digests[id(sample)] = digest
    if bad and not skip:
        raise DataError(_unreadable(bad, len(every)))
    kept = {name: [sample for sample in split.samples if id(sample) in digests] for name, split in splits.items()}
    return Decoded(kept, digests, (f"Skipped {counted(len(bad), 'unreadable image')}.",) if bad else ())


def _unreadable(bad: Sequence[str], total: int) -> str:
    """What to say of images that cannot be read: one line for one image."""
    if len(bad) == 1:
        return f"{bad[0]} Fix or delete it, or skip it with --skip-bad-images."
    shown = "\n  ".join(bad[:MOST]) + ("\n  ..." if len(bad) > MOST else "")
    return (
        f"{len(bad)} of {total} images cannot be read:\n  {shown}\n"
        "Fix or delete them, or skip them with --skip-bad-images."
    )


def _try(sample: Sample) -> str | DataError:
    """SHA-256 of an image's content, or why it cannot be read."""
    try:
        content = sample.content()
        digest = hashlib.sha256(content if isinstance(content, bytes) else content.tobytes()).hexdigest()
        read_rgb(content, sample.name)
    except DataError as error:
        return error
    return digest


def _carve(
    samples: Sequence[Sample], wanted: Mapping[int, int], seed: int, into: str
) -> tuple[list[Sample], list[Sample]]:
    """Take ``wanted`` images of each class out of ``samples``, and leave at least one.

    Raises DataError if none can be.
    """
    by_class: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_class[sample.label].append(sample)
    taken: set[int] = set()
    for label, members in sorted(by_class.items()):
        shuffled = random.Random(seed).sample(members, len(members))  # noqa: S311  (no secret)
        taken.update(id(sample) for sample in shuffled[: min(wanted[label], len(members) - 1)])
    if not taken:
        raise DataError(
            f"There are too few images to set some aside for {into}: no class has two. Add images, or name a folder "
            f"with --{into}-data."
        )
    return [s for s in samples if id(s) not in taken], [s for s in samples if id(s) in taken]


def _missing(splits: Mapping[str, Sequence[Sample]], classes: Sequence[str]) -> list[str]:
    """Notes on classes that are trained and not measured."""
    return [
        f"The {name} split has no images of {listed(missing)}: its averages are over the other classes."
        for name, samples in splits.items()
        if name != "train" and (missing := _without_images(samples, classes))
    ]


def _without_images(samples: Sequence[Sample], classes: Sequence[str]) -> list[str]:
    counts = Counter(sample.label for sample in samples)
    return [name for label, name in enumerate(classes) if not counts[label]]


def _fingerprint(splits: Mapping[str, Sequence[Sample]], classes: Sequence[str], digests: Mapping[int, str]) -> str:
    whole = hashlib.sha256("\0".join(classes).encode())
    for name, samples in sorted(splits.items()):
        rows = sorted((sample.name, sample.label, digests[id(sample)]) for sample in samples)
        for row in rows:
            whole.update("\0".join((name, *map(str, row))).encode("utf-8", "surrogateescape") + b"\n")
    return whole.hexdigest()


def _leaks(splits: Mapping[str, Sequence[Sample]], digests: Mapping[int, str]) -> list[str]:
    """Notes on images that are both trained on and measured on: they make the measure too good."""
    train = {digests[id(sample)] for sample in splits["train"]}
    return [
        f"{counted(count, f'{name} image')} of {len(samples)} also in train, byte for byte: accuracy will be "
        "overestimated."
        for name, samples in splits.items()
        if name != "train" and (count := sum(digests[id(sample)] in train for sample in samples))
    ]
