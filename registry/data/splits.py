"""Opens a task's images: class folders or timm's schemes, split with a seed, every image decoded once and named.

Splits: folders ``train``, ``val`` and ``test`` (or their usual synonyms) are taken as they are. Class folders without
them are split 70/15/15 within each class. A missing validation set is taken from the training images, never from the
test images; a test set that is not there is only taken from class folders without any splits.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from ..errors import DataError
from .sources import Sample, Split, find, split_of

SHARE = 0.15  # of the images of a class, for each split that has to be made


@dataclass(frozen=True)
class TaskData:
    """A task's images.

    Attributes:
        classes: names, in the order of the labels.
        train: training images.
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
    """Find, check, split and fingerprint the images of a task.

    Args:
        data: a folder, or ``SCHEME/NAME[@ROOT]``.
        val_data: of validation images, if they are elsewhere.
        test_data: of test images, if they are elsewhere.
        seed: of the splits that have to be made.
        skip_bad_images: leave unreadable images out instead of refusing them.
        progress: called with the number of images decoded so far and in all.

    Raises:
        DataError: for one class only, an empty class, a class missing from a split, unreadable images.
    """
    found = find(data)
    for split, elsewhere in (("val", val_data), ("test", test_data)):
        if elsewhere:
            found[split] = split_of(elsewhere, split)
    classes = _common_classes(found)
    splits = {name: split.samples for name, split in found.items()}
    decoded = _decode(splits, all(split.folders for split in found.values()), skip_bad_images, progress)
    wanted = {label: max(1, round(SHARE * n)) for label, n in Counter(s.label for s in splits["train"]).items()}
    if set(found) == {"train"} and found["train"].folders and not (val_data or test_data):
        splits["train"], splits["test"] = _carve(splits["train"], classes, wanted, seed, "test")
    if "val" not in splits:
        splits["train"], splits["val"] = _carve(splits["train"], classes, wanted, seed + 1, "val")
    _check_every_class(splits, classes)
    return TaskData(
        classes=classes,
        train=tuple(splits["train"]),
        val=tuple(splits["val"]),
        test=tuple(splits.get("test", ())),
        fingerprint=_fingerprint(splits, classes, decoded.digests),
        notes=(*decoded.notes, *_leaks(splits, decoded.digests)),
    )


def open_images(data: str, classes: Sequence[str]) -> tuple[Sample, ...]:
    """Labelled images to evaluate on: the test split of ``data`` if it has one, else the only one it has.

    Raises:
        DataError: for unreadable images, or a class that is none of ``classes``.
    """
    split = split_of(data, "test")
    unknown = [name for name in split.classes if name not in classes]
    if unknown:
        raise DataError(f"{split.where} has classes that the task does not know: {', '.join(unknown)}")
    order = {name: index for index, name in enumerate(classes)}
    samples = [Sample(s.name, order[split.classes[s.label]], s.read) for s in split.samples]
    _decode({"test": samples}, split.folders, False, lambda done, total: None)
    return tuple(samples)


def _common_classes(found: dict[str, Split]) -> tuple[str, ...]:
    """The classes of the training images, which every other split must have too.

    Raises:
        DataError: for one class only, or splits that differ.
    """
    train = found["train"]
    if len(train.classes) < 2:
        raise DataError(
            f"{train.where} has fewer than two classes ({', '.join(train.classes) or 'none'}); a task needs at least "
            "two."
        )
    for name, split in found.items():
        missing = [c for c in train.classes if c not in split.classes]
        unknown = [c for c in split.classes if c not in train.classes]
        if missing or unknown:
            what = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(unknown)}, which train lacks"
            raise DataError(f"The {name} split ({split.where}) {what}. Every split needs the same classes.")
        order = {c: index for index, c in enumerate(train.classes)}
        split.samples = [Sample(s.name, order[split.classes[s.label]], s.read) for s in split.samples]
    return train.classes


@dataclass
class _Decoded:
    digests: dict[int, str]  # by id of the sample
    notes: tuple[str, ...] = ()


def _decode(splits: dict[str, list[Sample]], threads: bool, skip: bool, progress: Counted) -> _Decoded:
    """Decode every image once: unreadable ones are refused or left out here, not met in the middle of training."""
    every = [sample for samples in splits.values() for sample in samples]
    digests: dict[int, str] = {}
    bad: dict[int, str] = {}
    with ThreadPoolExecutor(max_workers=4 if threads else 1) as pool:
        for done, (sample, (content, reason)) in enumerate(zip(every, pool.map(_try, every), strict=True), 1):
            progress(done, len(every))
            if reason:
                bad[id(sample)] = f"{sample.name}: {reason}"
            else:
                digests[id(sample)] = content
    if bad and not skip:
        listed = "\n  ".join(list(bad.values())[:20]) + ("\n  ..." if len(bad) > 20 else "")
        raise DataError(
            f"{len(bad)} of {len(every)} images cannot be read:\n  {listed}\n"
            "Fix or delete them, or skip them with --skip-bad-images."
        )
    for name, samples in splits.items():
        splits[name] = [sample for sample in samples if id(sample) not in bad]
    return _Decoded(digests, (f"Skipped {len(bad)} unreadable images.",) if bad else ())


def _try(sample: Sample) -> tuple[str, str]:
    """SHA-256 of an image's content, or why it cannot be read."""
    try:
        found = sample.read()
        content = found.tobytes() if isinstance(found, Image.Image) else found
        sample.image().load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return "", str(error).replace("\n", " ") or type(error).__name__
    return hashlib.sha256(content).hexdigest(), ""


def _carve(
    samples: Sequence[Sample], classes: Sequence[str], wanted: Mapping[int, int], seed: int, into: str
) -> tuple[list[Sample], list[Sample]]:
    """Take ``wanted`` images of each class out of ``samples``, and leave at least one.

    Raises:
        DataError: naming the classes that are too small.
    """
    by_class: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_class[sample.label].append(sample)
    small = [classes[label] for label, members in by_class.items() if len(members) < 2]
    if small:
        raise DataError(
            f"These classes have too few images to set some aside for {into}: {', '.join(sorted(small))}. Add images, "
            f"or name a folder with --{into}-data."
        )
    taken: set[int] = set()
    for label, members in sorted(by_class.items()):
        shuffled = random.Random(seed).sample(members, len(members))  # noqa: S311  (no secret)
        taken.update(id(sample) for sample in shuffled[: min(wanted[label], len(members) - 1)])
    return [s for s in samples if id(s) not in taken], [s for s in samples if id(s) in taken]


def _check_every_class(splits: dict[str, list[Sample]], classes: Sequence[str]) -> None:
    for name, samples in splits.items():
        counts = Counter(sample.label for sample in samples)
        missing = [c for index, c in enumerate(classes) if not counts[index]]
        if missing:
            raise DataError(
                f"The {name} split has no images of {', '.join(missing)}. Every class must be in every split."
            )


def _fingerprint(splits: dict[str, list[Sample]], classes: Sequence[str], digests: dict[int, str]) -> str:
    whole = hashlib.sha256("\0".join(classes).encode())
    for name, samples in sorted(splits.items()):
        for sample in sorted(samples, key=lambda s: (s.name, s.label)):
            whole.update(f"{name}\0{sample.name}\0{sample.label}\0{digests[id(sample)]}\n".encode())
    return whole.hexdigest()


def _leaks(splits: dict[str, list[Sample]], digests: dict[int, str]) -> tuple[str, ...]:
    """Images that are both trained on and measured on make the measure too good."""
    train = {digests[id(sample)] for sample in splits["train"]}
    counts = {
        name: sum(digests[id(sample)] in train for sample in samples)
        for name, samples in splits.items()
        if name != "train"
    }
    return tuple(
        f"{count} of {len(splits[name])} {name} images are also in train, byte for byte: accuracy will be "
        "overestimated."
        for name, count in counts.items()
        if count
    )
