"""bf16-values: what norms and vectors are put into beside weights whose deltas are rounded."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from ..spec import Registrar, hookimpl
from . import Codec, expect

LARGEST = torch.finfo(torch.bfloat16).max


class BFloat16Values(Codec):
    """Rounds the values, not the deltas: a variance keeps its sign. The error is at most 2^-9 of the value."""

    name = "bf16-values"
    summary = "norms and vectors rounded to 16 bits, half the bytes"

    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        return {"": value.clamp(-LARGEST, LARGEST).to(torch.bfloat16)}

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        return expect(parts, "", tuple(base.shape), torch.bfloat16).to(base.dtype)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return 2 * prod(shape)


@hookimpl
def register_encodings(registrar: Registrar) -> None:
    registrar.encoding(BFloat16Values())
