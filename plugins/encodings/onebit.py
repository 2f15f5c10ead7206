"""1bit: the sign of each difference from the base, with a scale for each output channel.

A row ``d`` becomes ``base + sign(d) mean |d|``, of all rows with two values the nearest.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from ..spec import Registrar, hookimpl
from . import Encoding, expect
from .minifloat import Float8Changes
from .packing import pack, packed_bytes, unpack


class OneBit(Encoding):
    """Keeps signs."""

    name = "1bit"
    summary = "signs of deltas, a scale for each output channel: a thirtieth of the bytes"
    vectors = Float8Changes()

    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        rows = (value - base).reshape(len(value), -1)
        return {"": pack(rows > 0, 1), "scale": rows.abs().mean(dim=1)}

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        if base.ndim < 2:  # in artifacts of before ``vectors``
            return expect(parts, "", tuple(base.shape), torch.float32)
        packed = expect(parts, "", (packed_bytes(base.numel(), 1),), torch.uint8)
        scale = expect(parts, "scale", (len(base),), torch.float32)
        signs = unpack(packed, 1, base.numel()) * 2 - 1
        return base + (signs.to(torch.float32).reshape(len(base), -1) * scale[:, None]).reshape(base.shape)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return packed_bytes(prod(shape), 1) + 4 * shape[0]


@hookimpl
def register_encodings(registrar: Registrar) -> None:
    registrar.encoding(OneBit())
