"""float8-changes: what norms and vectors are put into beside weights of 4 bits or fewer.

How far a value moved is rounded to a float of 8 bits, of which ``levels`` makes all there are. As a rule that is its
delta, against the farthest of the tensor: a value is off by at most 1/32 of how far it moved, or by 1/4000 of how far
the farthest did. Positive values of which some have all but gone, as variances of dead channels do, would be far off
from what they are; then it is their ratio to the base's, in octaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import ldexp, prod, sqrt

import torch
from torch import Tensor

from ..spec import Registrar, hookimpl
from . import Codec, expect

RATIO = "ratio"
FAR = 1 / 8  # of a value: what it may be off by as a delta, if it is positive


@cache
def levels(exponents: int, steps: int) -> Tensor:
    """``(2 exponents steps - 1,)`` float64 whole numbers, rising and symmetric around 0.

    The positive ones are floats with ``exponents`` binades, the lowest of them subnormal, of ``steps`` numbers each.
    """
    mantissa = torch.arange(steps)
    normal = [(steps + mantissa) * 2 ** (exponent - 1) for exponent in range(1, exponents)]
    sizes = torch.cat([mantissa, *normal]).double()
    return torch.cat([-sizes.flip(0)[:-1], sizes])


@cache
def ratios() -> Tensor:
    """``(255,)`` float64: 2 to the power of the levels, in 1/1024 octaves; up to 2^240.

    From square roots and products alone, which IEEE 754 rounds alike everywhere.
    """
    roots = [2.0]
    for _ in range(10):
        roots.append(sqrt(roots[-1]))
    values = []
    for level in levels(16, 8).int().tolist():
        octaves, rest = divmod(level, 1024)
        factors = (root for bit, root in enumerate(reversed(roots[1:])) if rest >> bit & 1)
        values.append(ldexp(prod(factors, start=1.0), octaves))
    return torch.tensor(values, dtype=torch.float64)


class Float8Changes(Codec):
    """Rounds changes, towards the base where a value would change its sign: a variance stays above zero."""

    name = "float8-changes"
    summary = "norms and vectors as changes of 8 bits, a quarter of the bytes"
    fixed = False

    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        deltas = self._deltas(value, base)
        positive = bool((value > 0).all() and (base > 0).all())
        if positive and ((self.decode(deltas, base) - value).abs() > FAR * value).any():
            octaves = (value.double().log2() - base.double().log2()).reshape(-1)
            return {RATIO: _nearest(1024 * octaves, levels(16, 8)).to(torch.uint8)}
        return deltas

    def _deltas(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        delta = (value - base).reshape(-1)
        table = levels(8, 16)
        scale = delta.abs().amax() / float(table[-1])
        codes = _nearest(delta / torch.where(scale > 0, scale, torch.ones_like(scale)), table)
        zero, side = len(table) // 2, base.sign()
        kept = (side != 0) & (value.sign() != -side)  # these are to decode to the base's side of 0, or to 0
        while (turned := kept & (_moved(codes, scale, base).sign() == -side)).any():
            codes = torch.where(turned.reshape(-1), codes + (zero - codes).sign(), codes)
        return {"": codes.to(torch.uint8), "scale": scale.reshape(1)}

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        codes = expect(parts, RATIO if RATIO in parts else "", (base.numel(),), torch.uint8)
        if codes.numel() and int(codes.max()) > 254:
            raise ValueError("there is no level 255")
        if RATIO in parts:
            value = base.double() * ratios()[codes.long()].reshape(base.shape)
            return value.clamp(max=torch.finfo(base.dtype).max).to(base.dtype)
        return _moved(codes, expect(parts, "scale", (1,), torch.float32), base)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return prod(shape) + 4


def _nearest(values: Tensor, table: Tensor) -> Tensor:
    """The place of each value's nearest level."""
    return torch.bucketize(values.double(), (table[1:] + table[:-1]) / 2)


def _moved(codes: Tensor, scale: Tensor, base: Tensor) -> Tensor:
    return base + (levels(8, 16).float()[codes.long()] * scale).reshape(base.shape)


@hookimpl
def register_encodings(registrar: Registrar) -> None:
    registrar.encoding(Float8Changes())
