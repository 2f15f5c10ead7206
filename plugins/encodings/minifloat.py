"""float8-deltas: what norms and vectors are put into beside weights of 4 bits or fewer.

A delta ``d`` becomes the nearest ``q s`` of 255 levels ``q``: numbers of a sign, 3 bits of exponent and 4 of mantissa,
with subnormals, as IEEE 754 forms them. The scale ``s`` puts the largest ``|d|`` of the tensor on the largest level. So
a value is off by at most 1/32 of how far it moved, or by 1/4000 of how far the farthest did.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from ..spec import Registrar, hookimpl
from . import Codec, expect

EXPONENTS, STEPS = 8, 16  # of 3 and of 4 bits


def levels() -> Tensor:
    """``(255,)`` float32, rising; level 127 is 0. All are multiples of 2^-10, so none is rounded."""
    mantissa = torch.arange(STEPS)
    normal = [(STEPS + mantissa) * 2 ** (exponent - 1) for exponent in range(1, EXPONENTS)]
    sizes = torch.cat([mantissa, *normal]).float() / 2**10
    return torch.cat([-sizes.flip(0)[:-1], sizes])


class Float8Deltas(Codec):
    """Rounds the deltas, towards the base where a value would change its sign: a variance stays above zero."""

    name = "float8-deltas"
    summary = "norms and vectors as deltas of 8 bits, a quarter of the bytes"

    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        delta = (value - base).reshape(-1)
        table = levels()
        scale = delta.abs().amax() / table[-1]
        steps = delta / torch.where(scale > 0, scale, torch.ones_like(scale))
        codes = torch.bucketize(steps, (table[1:] + table[:-1]) / 2)
        zero, side = len(table) // 2, base.sign()
        kept = (side != 0) & (value.sign() != -side)  # these are to decode to the base's side of 0, or to 0
        while (turned := kept & (self._decoded(codes, scale, base).sign() == -side)).any():
            codes = torch.where(turned.reshape(-1), codes + (zero - codes).sign(), codes)
        return {"": codes.to(torch.uint8), "scale": scale.reshape(1)}

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        codes = expect(parts, "", (base.numel(),), torch.uint8)
        scale = expect(parts, "scale", (1,), torch.float32)
        if codes.numel() and int(codes.max()) >= len(levels()):
            raise ValueError(f"there is no level {int(codes.max())}")
        return self._decoded(codes, scale, base)

    @staticmethod
    def _decoded(codes: Tensor, scale: Tensor, base: Tensor) -> Tensor:
        return base + (levels()[codes.long()] * scale).reshape(base.shape)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return prod(shape) + 4


@hookimpl
def register_encodings(registrar: Registrar) -> None:
    registrar.encoding(Float8Deltas())
