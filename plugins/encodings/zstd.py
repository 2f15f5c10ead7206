"""zstd: what another codec stores, without loss in fewer bytes; ``--encoding int4+zstd`` puts it upon ``int4``.

All parts of a tensor become one, ``zstd``, if that takes fewer bytes; else they are stored as they are. It holds one
zstd frame of

1. a line of JSON: for each part its name, dtype and shape;
2. for each part its bytes in planes: first the lowest byte of every value, then the next, since high bytes of
   neighbouring values are alike.

The values of a float32 part of the base's shape are replaced by how many float32 numbers they are away from the
base's, zigzag (0, -1, 1, -2, ...): a fine-tuned weight is near the base's, so most high bytes are zeros.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from . import COMPRESSED, Codec, Encoding
from .floats import Float32

PART = "zstd"
LEVEL = 3  # on byte planes the higher ones win less than 1 %
LINE = 4096  # bytes that the line of JSON takes at most

Words = NDArray[numpy.uint32]


class Compressed(Codec):
    """What an inner codec stores, compressed; any codec that is not compressed itself."""

    fixed = False

    def __init__(self, inner: Codec) -> None:
        self.inner = inner
        self.name = inner.name + COMPRESSED
        self.summary = f"{inner.summary}, compressed without loss"
        self.exact = inner.exact

    @property
    def core(self) -> Codec:
        return self.inner

    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        return self.packed(self.inner.encode(value, base), base)

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        return self.inner.decode(self.unpacked(parts, base), base)

    def packed(self, parts: Mapping[str, Tensor], base: Tensor) -> dict[str, Tensor]:
        line = json.dumps([[name, _dtype(part), list(part.shape)] for name, part in parts.items()]) + "\n"
        content = b"".join([line.encode(), *(_planes(part, base) for part in parts.values())])
        frame = zstandard.ZstdCompressor(level=LEVEL).compress(content)
        if len(frame) >= sum(part.nbytes for part in parts.values()) or len(line) > LINE:
            return dict(parts)
        return {PART: torch.frombuffer(bytearray(frame), dtype=torch.uint8)}

    def unpacked(self, parts: Mapping[str, Tensor], base: Tensor) -> Mapping[str, Tensor]:
        return self._parts(parts[PART], base) if PART in parts else parts

    def _parts(self, frame: Tensor, base: Tensor) -> dict[str, Tensor]:
        """What a frame holds. Raises ValueError for anything but parts."""
        if frame.dtype != torch.uint8 or frame.ndim != 1 or not len(frame):
            raise ValueError(f"expected a vector of bytes for {PART}, found {frame.dtype} {tuple(frame.shape)}")
        content = _decompress(frame.numpy().tobytes(), LINE + self.inner.nbytes(tuple(base.shape)))
        line, _, rest = content.partition(b"\n")
        parts, at = {}, 0
        for name, dtype, shape in _described(line):
            size = dtype.itemsize * prod(shape)
            parts[name] = _unplane(rest[at : at + size], dtype, shape, base)
            at += size
        if at != len(rest):
            raise ValueError(f"{PART} holds {len(rest)} bytes of parts, and describes {at}")
        return parts

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return self.inner.nbytes(shape)


class CompressedEncoding(Compressed, Encoding):
    """An encoding, compressed: its weights, and its norms and vectors."""

    def __init__(self, inner: Encoding) -> None:
        super().__init__(inner)
        self.vectors = Compressed(inner.vectors or Float32())
        self.low_rank_form = inner.low_rank_form


def _decompress(frame: bytes, most: int) -> bytes:
    """What a frame holds, which it must say to be no more than ``most`` bytes. Raises ValueError."""
    try:
        size = zstandard.frame_content_size(frame)
        if not 0 < size <= most:
            raise ValueError(f"{PART} says that it holds {size} bytes, at most {most} can be")
        content: bytes = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"{PART} does not decompress: {error}") from error
    return content


def _described(line: bytes) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Name, dtype and shape of each part. Raises ValueError for any other line."""
    try:
        described = [(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in json.loads(line)]
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{PART} does not describe its parts: {error}") from error
    for name, dtype, shape in described:
        sound = all(type(length) is int and length >= 0 for length in shape)
        if not (isinstance(name, str) and isinstance(dtype, torch.dtype) and sound):
            raise ValueError(f"{PART} does not describe its parts: {name!r}, {dtype}, {shape}")
    return described


def _dtype(part: Tensor) -> str:
    return str(part.dtype).removeprefix("torch.")


def _near(dtype: torch.dtype, shape: tuple[int, ...], base: Tensor) -> bool:
    """Whether a part's values are likely to be near the base's."""
    return dtype == base.dtype == torch.float32 and shape == tuple(base.shape)


def _planes(part: Tensor, base: Tensor) -> bytes:
    """The bytes of a part, lowest of all values first."""
    flat = part.contiguous().reshape(-1)
    if _near(part.dtype, tuple(part.shape), base):
        away = _ordered(_words(flat)) - _ordered(_words(base))
        flat = torch.from_numpy((away << 1) ^ numpy.negative(away >> 31))
    rows: NDArray[Any] = flat.view(torch.uint8).numpy().reshape(-1, part.element_size())
    return rows.T.tobytes()


def _unplane(content: bytes, dtype: torch.dtype, shape: tuple[int, ...], base: Tensor) -> Tensor:
    """The part whose bytes ``_planes`` gave. Raises ValueError if there are too few."""
    if len(content) != dtype.itemsize * prod(shape):
        raise ValueError(f"{PART} is cut short: {len(content)} bytes for {dtype} {shape}")
    rows = numpy.frombuffer(content, numpy.uint8).reshape(dtype.itemsize, -1).T
    flat = torch.from_numpy(rows.copy().reshape(-1))
    if _near(dtype, shape, base):
        zigzag = _words(flat)
        away = (zigzag >> 1) ^ numpy.negative(zigzag & 1)
        flat = torch.from_numpy(_ordered(away + _ordered(_words(base))))
    try:
        return flat.view(dtype).reshape(shape)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise ValueError(f"{PART} describes a part that cannot be: {dtype} {shape}") from error


def _words(values: Tensor) -> Words:
    """The bits of float32 values, without their shape."""
    words: Words = values.contiguous().reshape(-1).view(torch.uint32).numpy()
    return words


def _ordered(words: Words) -> Words:
    """Bits of floats to numbers in the same order, and back: the lower bits of negative ones are turned round."""
    turned: Words = words ^ (numpy.negative(words >> 31) >> 1)
    return turned
