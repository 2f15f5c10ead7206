"""An encoding: the difference from the base in 16 bits, with one scale a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from taps_registry.plugins import Encoding, Registrar, expect, hookimpl


class Int16(Encoding):
    """Rounds to 65,535 steps from the largest difference to its negative."""

    name = "int16"
    summary = "deltas rounded to 16 bits, half the bytes"

    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        delta = value - base
        scale = delta.abs().max().clamp(min=2.0**-100) / 32767  # no division by 0
        return {"": torch.round(delta / scale).to(torch.int16), "scale": scale.reshape(1)}

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        steps = expect(parts, "", tuple(base.shape), torch.int16)
        scale = expect(parts, "scale", (1,), torch.float32)
        return base + (steps * scale).reshape(base.shape)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return 2 * prod(shape) + 4


@hookimpl
def register_encodings(registrar: Registrar) -> None:
    registrar.encoding(Int16())
