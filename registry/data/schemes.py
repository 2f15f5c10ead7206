"""Data sets that ``timm.data.create_dataset`` knows by a scheme, such as ``torch/cifar10@ROOT``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from PIL import Image

from ..errors import DataError, first_line
from .samples import Sample, Split

SCHEMES = ("torch", "hfds", "hfids", "tfds", "wds")
NAMES = {"train": ("train",), "val": ("validation", "val"), "test": ("test",)}


def read_scheme(data: str) -> dict[str, Split]:
    """The splits of a data set by name. Raises DataError if it has no training images."""
    name, _, root = data.partition("@")
    splits: dict[str, Split] = {}
    for split, candidates in NAMES.items():
        if split == "val" and name.lower().startswith("torch/"):
            continue  # torchvision's have a training and a test set, and give the latter for validation too
        for candidate in candidates:
            try:
                splits[split] = _timm(name, root or None, candidate)
                break
            except DataError:
                if split == "train":
                    raise
    return splits


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
    samples = tuple(Sample(str(index), label, partial(_image, images, index)) for index, label in enumerate(labels))
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


def _image(images: Any, index: int) -> bytes | Image.Image:
    """An image of a data set: its file's bytes where there is a reader, which does not pass over broken ones."""
    reader = getattr(images, "reader", None)
    value = reader[index][0] if reader is not None else images[index][0]
    if isinstance(value, Image.Image):
        return value.copy()
    with value:
        content: bytes = value.read()
    return content
