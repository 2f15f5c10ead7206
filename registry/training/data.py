"""Opens a task's images: class folders or timm's schemes, split with a seed, every image decoded once and named.

Splits: folders ``train``, ``val`` and ``test`` (or their usual synonyms) are taken as they are. Class folders without
them are split 70/15/15 within each class. A missing validation set is taken from the training images, never from the
test images; a test set that is not there is only taken from class folders without any splits.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DataError, first_line

SHARE = 0.15  # of the images of a class, for each split that has to be made
FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}
SCHEMES = ("torch", "hfds", "hfids", "tfds", "wds")
SPLITS = {"train": ("train",), "val": ("validation", "val"), "test": ("test",)}


@dataclass(frozen=True)
class Sample:
    """One image that can be opened again and again.

    Attributes:
        name: for messages and the fingerprint: a path relative to its split, or an index.
        label: index into the classes.
        read: gives the file's bytes, or a decoded image for sources that have no files.
    """

    name: str
    label: int
    read: Callable[[], Any]

    def image(self) -> Image.Image:
        """The decoded image in RGB. Raises OSError or ValueError if it cannot be decoded."""
        found = self.read()
        with found if isinstance(found, Image.Image) else Image.open(BytesIO(found)) as image:
            return image.convert("RGB")


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


@dataclass
class _Split:
    """Images of one split as they were found, with the classes of that place."""

    classes: tuple[str, ...]
    samples: list[Sample]
    where: str


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
    found = _find(data)
    for split, elsewhere in (("val", val_data), ("test", test_data)):
        if elsewhere:
            found[split] = _any_split(elsewhere, split)
    classes = _common_classes(found)
    splits = {name: split.samples for name, split in found.items()}
    decoded = _decode(splits, skip_bad_images, progress)
    wanted = {label: max(1, round(SHARE * n)) for label, n in Counter(s.label for s in splits["train"]).items()}
    if set(found) == {"train"} and not (val_data or test_data) and _is_unsplit(data):
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
    split = _any_split(data, "test")
    unknown = [name for name in split.classes if name not in classes]
    if unknown:
        raise DataError(f"{split.where} has classes the task does not know: {', '.join(unknown)}")
    order = {name: index for index, name in enumerate(classes)}
    samples = [Sample(s.name, order[split.classes[s.label]], s.read) for s in split.samples]
    _decode({"test": samples}, False, lambda done, total: None)
    return tuple(samples)


def _is_unsplit(data: str) -> bool:
    """Whether ``data`` is class folders; called when they have no splits of their own."""
    return Path(data).exists()


def _find(data: str) -> dict[str, _Split]:
    """The splits that ``data`` has by itself; only ``train`` where it has none."""
    path = Path(data)
    if path.is_dir():
        parts = {split: part for split in FOLDERS if (part := _split_folder(path, split)) is not None}
        if "train" in parts:
            return {split: _folder(part) for split, part in parts.items()}
        if parts:
            raise DataError(
                f"{path} has {', '.join(part.name for part in parts.values())} but no train folder. "
                "Add one, or name the folders with --data, --val-data and --test-data."
            )
        return {"train": _folder(path)}
    if path.is_file():
        raise DataError(f"{path} is a file; unpack it, and name the folder that holds a folder for each class.")
    if data.partition("/")[0].lower() in SCHEMES and "/" in data:
        return _scheme(data)
    raise DataError(
        f"There is no folder {data}. --data takes a folder of class folders, or "
        f"SCHEME/NAME[@ROOT] with one of timm's schemes: {', '.join(SCHEMES)}."
    )


def _any_split(data: str, wanted: str) -> _Split:
    found = _find(data)
    return found.get(wanted) or found["train"]


def _split_folder(path: Path, split: str) -> Path | None:
    folders = {child.name.lower(): child for child in path.iterdir() if child.is_dir()}
    return next((folders[name] for name in FOLDERS[split] if name in folders), None)


def _folder(path: Path) -> _Split:
    """Class folders, read by timm; a class folder without images is an error that timm would pass over."""
    from timm.data.readers.reader_image_folder import ReaderImageFolder

    folders = sorted(child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not folders:
        raise DataError(f"{path} has no class folders. Put the images of each class into a folder of its own.")
    try:
        reader = ReaderImageFolder(str(path))
    except RuntimeError as error:
        raise DataError(f"{path}: {error}") from error
    classes = tuple(sorted(reader.class_to_idx, key=reader.class_to_idx.__getitem__))
    filled = {Path(file).relative_to(path).parts[0] for file, _ in reader.samples}
    empty = [name for name in folders if name not in filled]
    if empty:
        raise DataError(f"{path} has classes without images: {', '.join(empty)}. Fill or delete these folders.")
    loose = [Path(file).name for file, _ in reader.samples if Path(file).parent == path]
    if loose:
        raise DataError(f"{path} has images outside of class folders, such as {loose[0]}. Move them into one.")
    samples = [
        Sample(Path(file).relative_to(path).as_posix(), label, Path(file).read_bytes) for file, label in reader.samples
    ]
    return _Split(classes, samples, str(path))


def _scheme(data: str) -> dict[str, _Split]:
    """The splits of a data set that ``timm.data.create_dataset`` knows."""
    name, _, root = data.partition("@")
    if name.lower() in ("torch/image_folder", "torch/folder"):
        return _find(root)  # class folders by another name; timm would give the same images for every split
    found: dict[str, _Split] = {}
    for split, names in SPLITS.items():
        if split == "val" and name.lower().startswith("torch/"):
            continue  # torchvision's have a training and a test set, and give the latter for validation too
        for candidate in names:
            try:
                found[split] = _timm(name, root or None, candidate)
                break
            except DataError:
                if split == "train":
                    raise
    return found


def _timm(name: str, root: str | None, split: str) -> _Split:
    """One split through timm's factory. Iterable data sets are read into memory once."""
    from timm.data import create_dataset

    where = f"{name}{'@' if name and root else ''}{root or ''}"
    try:
        source = create_dataset(name, root=root, split=split)
        images = source if hasattr(source, "__getitem__") else list(source)
        labels = [int(label) for label in _labels(images)]
    except Exception as error:  # torchvision, datasets, tensorflow-datasets and webdataset each raise their own
        raise DataError(f"timm cannot open the {split} split of {where}: {first_line(error)}") from error
    names = _class_names(source, labels)
    samples = [Sample(str(index), label, partial(_image, images, index)) for index, label in enumerate(labels)]
    return _Split(names, samples, where)


def _labels(images: Any) -> Iterator[int]:
    targets = getattr(images, "targets", None)
    if targets is not None:
        yield from (int(target) for target in targets)
    else:
        yield from (images[index][1] for index in range(len(images)))


def _class_names(source: Any, labels: Iterable[int]) -> tuple[str, ...]:
    """Names of the classes where the data set has them, else their numbers."""
    by_name = getattr(source, "class_to_idx", None) or getattr(getattr(source, "reader", None), "class_to_idx", None)
    if by_name:
        return tuple(sorted(by_name, key=by_name.__getitem__))
    return tuple(str(label) for label in range(max(labels, default=-1) + 1))


def _image(images: Any, index: int) -> Any:
    """An image of a data set: its file's bytes where there is a reader, which does not pass over broken ones."""
    reader = getattr(images, "reader", None)
    found = reader[index][0] if reader is not None else images[index][0]
    if isinstance(found, Image.Image):
        return found.copy()
    with found:
        return found.read()


def _common_classes(found: dict[str, _Split]) -> tuple[str, ...]:
    """The classes of the training images, which every other split must have too.

    Raises:
        DataError: for one class only, or splits that differ.
    """
    train = found["train"]
    if len(train.classes) < 2:
        raise DataError(
            f"{train.where} has one class only ({', '.join(train.classes) or 'none'}); a task needs two or more."
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


def _decode(splits: dict[str, list[Sample]], skip: bool, progress: Counted) -> _Decoded:
    """Decode every image once: unreadable ones are refused or left out here, not met in the middle of training."""
    every = [sample for samples in splits.values() for sample in samples]
    digests: dict[int, str] = {}
    bad: dict[int, str] = {}
    in_files = all(getattr(sample.read, "__func__", None) is Path.read_bytes for sample in every)
    with ThreadPoolExecutor(max_workers=4 if in_files else 1) as pool:  # other sources may not be safe to share
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
            "Mend or delete them, or leave them out with --skip-bad-images."
        )
    for name, samples in splits.items():
        splits[name] = [sample for sample in samples if id(sample) not in bad]
    return _Decoded(digests, (f"Left out {len(bad)} unreadable images.",) if bad else ())


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
            f"These classes have too few images to take some for {into}: {', '.join(sorted(small))}. Add images, "
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
        f"{count} of {len(splits[name])} {name} images are also in train, byte for byte: it will look too easy."
        for name, count in counts.items()
        if count
    )
