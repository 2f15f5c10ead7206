"""fp32, bf16, fp16: weights in 32 bits, or the difference from the base in 16; bf16-values: norms and vectors in 16."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from ..spec import Registrar, hookimpl
from . import Codec, Encoding, expect


class Float32(Encoding):
    """Stores the effective weights themselves: adding a rounded delta to the base would not give them back."""

    name = "fp32"
    summary = "effective weights in 32 bits, exact"
    exact = True

    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        return {"": value}

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        return expect(parts, "", tuple(base.shape), base.dtype)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return 4 * prod(shape)


class BFloat16Values(Codec):
    """Rounds the values, not the deltas: a variance keeps its sign. The error is at most 2^-9 of the value."""

    name = "bf16-values"
    summary = "norms and vectors rounded to 16 bits, half the bytes"

    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        return {"": _rounded(value, torch.bfloat16)}

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        return expect(parts, "", tuple(base.shape), torch.bfloat16).to(base.dtype)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return 2 * prod(shape)


class Rounded(Encoding):
    """Rounds the delta, not the weights: deltas are small, and so is the error."""

    dtype: torch.dtype
    vectors = BFloat16Values()

    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        return {"": (value - base).to(self.dtype)}

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        return base + expect(parts, "", tuple(base.shape), self.dtype).to(base.dtype)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return 2 * prod(shape)


class BFloat16(Rounded):
    """An error of at most 2^-8 of the delta."""

    name = "bf16"
    summary = "deltas rounded to 16 bits, half the bytes"
    dtype = torch.bfloat16


class Float16(Rounded):
    """An error of 2^-11 of the delta, of 2^-25 below 2^-14. A delta above 65,504 is cut off there."""

    name = "fp16"
    summary = "deltas rounded to 16 bits, finer than bf16, half the bytes"
    dtype = torch.float16

    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        return {"": _rounded(value - base, self.dtype)}


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in 16 bits; those beyond the largest number there is are cut off."""
    largest = torch.finfo(dtype).max
    return values.clamp(-largest, largest).to(dtype)


@hookimpl
def register_encodings(registrar: Registrar) -> None:
    for codec in (Float32(), BFloat16(), Float16(), BFloat16Values()):
        registrar.encoding(codec)
