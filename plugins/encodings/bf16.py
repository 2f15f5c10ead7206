"""bf16: the difference from the base in 16 bits."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from ..spec import Registrar, hookimpl
from . import Encoding
from .vectors import BFloat16Values


class BFloat16(Encoding):
    """Rounds the delta, not the weights: deltas are small, so the error is at most 2^-8 of the delta."""

    name = "bf16"
    summary = "deltas rounded to 16 bits, half the bytes"
    vectors = BFloat16Values()

    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        return {"": (value - base).to(torch.bfloat16)}

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        delta = parts[""]
        if delta.shape != base.shape or delta.dtype != torch.bfloat16:
            raise ValueError(f"expected bfloat16 {tuple(base.shape)}, found {delta.dtype} {tuple(delta.shape)}")
        return base + delta.to(base.dtype)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return 2 * prod(shape)


@hookimpl
def register_encodings(registrar: Registrar) -> None:
    registrar.encoding(BFloat16())
