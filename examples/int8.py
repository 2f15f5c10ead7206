"""An encoding: the difference from the base in 8 bits, with one scale a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from taps_registry.plugins import Encoding, Registrar, hookimpl
from taps_registry.plugins.encodings import expect


class Int8(Encoding):
    """Rounds to 255 steps between the largest difference and its negative."""

    name = "int8"
    summary = "deltas rounded to 8 bits, a quarter of the bytes"

    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        delta = value - base
        scale = delta.abs().max().clamp(min=1e-12) / 127
        return {"": torch.round(delta / scale).to(torch.int8), "scale": scale.reshape(1)}

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        steps = expect(parts, "", tuple(base.shape), torch.int8)
        scale = expect(parts, "scale", (1,), torch.float32)
        return base + (steps * scale).reshape(base.shape)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return prod(shape) + 4


@hookimpl
def register_encodings(registrar: Registrar) -> None:
    registrar.encoding(Int8())
