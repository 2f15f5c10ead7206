"""Files of many tensors and a text: safetensors, with the small tensors end to end and the text compressed.

safetensors takes some ninety bytes of index for a tensor, as much as a norm in 8 bits has values, and text as it is. So
tensors below 64 KiB lie in one tensor of bytes, in the order of their names. What they are is listed on a second line
of the text, and both lines are compressed.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from .tensors import write_tensors

KEY = "taps"  # one alone: safetensors keeps several in no fixed order, so that bytes would not follow from content
SMALL = 64 * 1024  # bytes
BUNDLE = "::small"
LONGEST = 64 * 1024 * 1024  # bytes of text; a few kilobytes of a damaged file could claim a thousand times as many
INDEX = 160  # most bytes that safetensors' index takes for a tensor with a name of usual length


class PackedFile:
    """An open file.

    Args:
        file: as safetensors opens it.

    Attributes:
        text: that was stored with the tensors.
    """

    def __init__(self, file: Any) -> None:
        raw = (file.metadata() or {})[KEY]
        self._file = file
        self._small: dict[str, Tensor] = {}
        if raw.startswith("{"):  # as files were before tensors were bundled
            self.text = raw
        else:
            self.text, listed = _decompressed(raw).split("\n")
            self._small = _unbundled(json.loads(listed), file)

    def names(self) -> set[str]:
        """Of all tensors."""
        return (set(self._file.keys()) - {BUNDLE}) | set(self._small)

    def tensor(self, name: str) -> Tensor:
        """One of them, on the CPU."""
        return self._small[name] if name in self._small else self._file.get_tensor(name)


@contextmanager
def open_packed(path: Path) -> Iterator[PackedFile]:
    """Open what ``write_packed`` wrote.

    Raises:
        SafetensorError, OSError, KeyError, TypeError, ValueError or zlib.error: for anything else.
    """
    with safe_open(path, framework="pt") as file:
        yield PackedFile(file)


def write_packed(path: Path, tensors: Mapping[str, Tensor], text: str) -> None:
    """Write a file, whole or not at all; the same content gives the same bytes.

    Args:
        path: of the file.
        tensors: by name; any device.
        text: on one line.

    Raises:
        StorageError: if the disk refuses.
    """
    small = {name: tensor.detach().cpu() for name, tensor in sorted(tensors.items()) if tensor.nbytes < SMALL}
    large = {name: tensor for name, tensor in tensors.items() if name not in small}
    if small:
        large[BUNDLE] = torch.cat([tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in small.values()])
    listed = [(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in small.items()]
    write_tensors(path, large, {KEY: _compressed(text, json.dumps(listed, separators=(",", ":")))})


def text_bytes(text: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """About how many bytes of a file are its text and its list of small tensors, by name and shape."""
    listed = [(name, "bfloat16", shape) for name, shape in sorted(shapes.items())]
    return len(_compressed(text, json.dumps(listed, separators=(",", ":"))))


def _compressed(*lines: str) -> str:
    return base64.b64encode(zlib.compress("\n".join(lines).encode(), 9)).decode()


def _decompressed(raw: str) -> str:
    inflater = zlib.decompressobj()
    text = inflater.decompress(base64.b64decode(raw, validate=True), LONGEST)
    if not inflater.eof:
        raise ValueError(f"the text is cut off, or longer than {LONGEST:,} bytes")
    return text.decode()


def _unbundled(listed: list[tuple[str, str, list[int]]], file: Any) -> dict[str, Tensor]:
    """The small tensors, each in memory of its own. Raises ValueError if they are not just what is there."""
    dtypes = {name: getattr(torch, dtype) for name, dtype, _ in listed}
    sizes = [prod(shape) * dtypes[name].itemsize for name, _, shape in listed]
    whole = file.get_tensor(BUNDLE) if listed else torch.empty(0, dtype=torch.uint8)
    if whole.dtype != torch.uint8 or sum(sizes) != whole.numel():
        raise ValueError(f"small tensors take {sum(sizes)} bytes by their list, and {whole.nbytes} are there")
    pieces = zip(listed, whole.split(sizes), strict=True)
    return {name: piece.clone().view(dtypes[name]).reshape(shape) for (name, _, shape), piece in pieces}
