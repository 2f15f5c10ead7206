"""int8, int4, int3: the difference from the base in a few bits, with a scale for each output channel.

A row ``d`` of the delta becomes ``q = round(d / s)`` with ``|q| <= 2^(bits - 1) - 1``, and the value in effect is
``base + q s``. The scale is the one of a few candidates, from ``max |d| / (2^(bits - 1) - 1)`` downwards, with the
least squared error: with few bits it pays to cut off the largest values.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from ..spec import Registrar, hookimpl
from . import Codec, Encoding, expect
from .floats import BFloat16Values
from .minifloat import Float8Changes
from .packing import pack, packed_bytes, unpack

SHARES = tuple(1 - 0.03 * step for step in range(24))  # of the widest scale


class Integers(Encoding):
    """Deltas as integers of so many bits."""

    bits: int
    vectors: Codec = Float8Changes()

    @property
    def largest(self) -> int:
        return int(2 ** (self.bits - 1) - 1)

    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        rows = (value - base).reshape(len(value), -1)
        scale = self._scales(rows)
        codes = self._round(rows, scale) + self.largest
        return {"": pack(codes, self.bits), "scale": scale}

    def _scales(self, rows: Tensor) -> Tensor:
        """``(rows,)``: of each row the candidate with the least squared error."""
        widest = rows.abs().amax(dim=1) / self.largest
        best, least = widest, torch.full_like(widest, float("inf"))
        for share in SHARES:
            scale = widest * share
            error = (self._round(rows, scale) * scale[:, None] - rows).square().sum(dim=1)
            best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
        return best

    def _round(self, rows: Tensor, scale: Tensor) -> Tensor:
        steps = torch.where(scale > 0, scale, torch.ones_like(scale))[:, None]
        return torch.round(rows / steps).clamp(-self.largest, self.largest)

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        packed = expect(parts, "", (packed_bytes(base.numel(), self.bits),), torch.uint8)
        scale = expect(parts, "scale", tuple(base.shape[:1]), torch.float32).reshape(-1, 1)
        codes = unpack(packed, self.bits, base.numel()) - self.largest
        delta = codes.to(torch.float32).reshape(len(scale), -1) * scale
        return base + delta.reshape(base.shape)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return packed_bytes(prod(shape), self.bits) + 4 * shape[0]


class Int8(Integers):
    """A quarter of the bytes."""

    name = "int8"
    low_rank_form = "low-rank-int8"
    summary = "deltas in 8 bits, a scale for each output channel: a quarter of the bytes"
    vectors = BFloat16Values()
    bits = 8


class Int4(Integers):
    """An eighth of the bytes."""

    name = "int4"
    low_rank_form = "low-rank-int4"
    summary = "deltas in 4 bits, a scale for each output channel: an eighth of the bytes"
    bits = 4


class Int3(Integers):
    """A tenth of the bytes."""

    name = "int3"
    low_rank_form = "low-rank-int3"
    summary = "deltas in 3 bits, a scale for each output channel: a tenth of the bytes"
    bits = 3


@hookimpl
def register_encodings(registrar: Registrar) -> None:
    for encoding in (Int8(), Int4(), Int3()):
        registrar.encoding(encoding)
