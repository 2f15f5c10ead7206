"""Where a task's images come from: folders of class folders, or the data sets that timm knows by a scheme."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DataError, first_line

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


@dataclass
class Split:
    """Images of one split as they were found.

    Attributes:
        classes: names, in the order of the labels in that place.
        samples: labelled images.
        where: for messages.
        folders: whether they are files in class folders, which may be read by several threads at once.
    """

    classes: tuple[str, ...]
    samples: list[Sample]
    where: str
    folders: bool = False


def find(data: str) -> dict[str, Split]:
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


def split_of(data: str, wanted: str) -> Split:
    found = find(data)
    return found.get(wanted) or found["train"]


def _split_folder(path: Path, split: str) -> Path | None:
    folders = {child.name.lower(): child for child in path.iterdir() if child.is_dir()}
    return next((folders[name] for name in FOLDERS[split] if name in folders), None)


def _folder(path: Path) -> Split:
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
    return Split(classes, samples, str(path), folders=True)


def _scheme(data: str) -> dict[str, Split]:
    """The splits of a data set that ``timm.data.create_dataset`` knows."""
    name, _, root = data.partition("@")
    if name.lower() in ("torch/image_folder", "torch/folder"):
        return find(root)  # class folders by another name; timm would give the same images for every split
    found: dict[str, Split] = {}
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


def _timm(name: str, root: str | None, split: str) -> Split:
    """One split through timm's factory. Iterable data sets are read into memory once."""
    from timm.data import create_dataset
    from torch.utils.data import IterableDataset

    where = f"{name}{'@' if name and root else ''}{root or ''}"
    try:
        source = create_dataset(name, root=root, split=split)
        images = list(source) if isinstance(source, IterableDataset) else source
        labels = [int(label) for label in _labels(images)]
    except Exception as error:  # torchvision, datasets, tensorflow-datasets and webdataset each raise their own
        raise DataError(f"timm cannot open the {split} split of {where}: {first_line(error)}") from error
    names = _class_names(source, labels)
    samples = [Sample(str(index), label, partial(_image, images, index)) for index, label in enumerate(labels)]
    return Split(names, samples, where)


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
