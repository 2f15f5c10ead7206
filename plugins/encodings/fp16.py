"""fp16: the difference from the base in 16 bits, of which 10 are the fraction's."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from ..spec import Registrar, hookimpl
from . import Encoding, expect
from .vectors import BFloat16Values

LARGEST = torch.finfo(torch.float16).max


class Float16(Encoding):
    """Rounds the delta: an error of 2^-11 of it, of 2^-25 below 2^-14. A delta above 65,504 is cut off there."""

    name = "fp16"
    summary = "deltas rounded to 16 bits, finer than bf16, half the bytes"
    vectors = BFloat16Values()

    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        return {"": (value - base).clamp(-LARGEST, LARGEST).to(torch.float16)}

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        return base + expect(parts, "", tuple(base.shape), torch.float16).to(base.dtype)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return 2 * prod(shape)


@hookimpl
def register_encodings(registrar: Registrar) -> None:
    registrar.encoding(Float16())
