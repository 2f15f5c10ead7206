"""lowrank: the difference from the base as a product of two thin matrices.

A delta of ``m`` rows and ``n`` columns is cut off after the fewest singular values that leave at most ``ERROR`` of its
Frobenius norm behind. Both factors, ``(r, m)`` and ``(r, n)``, are stored in 8 bits with a scale for each of the ``r``
rows. Where that would take no fewer bytes than the delta in ``int8``, that is stored.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..spec import Registrar, hookimpl
from . import Encoding, expect
from .integers import Int8
from .products import with_product
from .vectors import BFloat16Values

ERROR = 0.2  # of the delta's Frobenius norm, as much as int3 leaves of normally distributed deltas
LARGEST = 127
WHOLE = Int8()
UP, DOWN, SCALE = "up", "down", "-scale"


class LowRank(Encoding):
    """Pays where a task moved a layer along few directions."""

    name = "lowrank"
    summary = "deltas as products of thin matrices in 8 bits, within a fifth of their norm; else as int8"
    fixed = False
    vectors = BFloat16Values()

    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        matrix = (value - base).reshape(len(value), -1)
        if not matrix.isfinite().all():  # there is no decomposition of it
            return WHOLE.encode(value, base)
        left, sizes, right = _cut(matrix)
        roots = sizes.sqrt()[:, None]
        factors = {**_packed(UP, left.T * roots), **_packed(DOWN, right * roots)}
        if sum(part.nbytes for part in factors.values()) < self.nbytes(tuple(base.shape)):
            return factors
        return WHOLE.encode(value, base)

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        if UP not in parts:
            return WHOLE.decode(parts, base)
        rank = parts[UP].numel() // len(base)
        up = _unpacked(parts, UP, (rank, len(base)))
        down = _unpacked(parts, DOWN, (rank, base.numel() // len(base)))
        return with_product(base, up.T, down)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return WHOLE.nbytes(shape)


def _cut(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular values and their vectors, ``(m, r)``, ``(r,)`` and ``(r, n)``, with one of them at least."""
    largest = float(matrix.abs().max()) or 1.0  # scaled, and in float64: LAPACK does not converge on all small deltas
    left, sizes, right = torch.linalg.svd(matrix.double() / largest, full_matrices=False)
    left, sizes, right = left.to(matrix), (sizes * largest).to(matrix), right.to(matrix)
    behind = sizes.double().square().flip(0).cumsum(0).flip(0)  # what is left before each of them
    rank = max(1, int((behind > ERROR**2 * behind[0]).sum()))
    return left[:, :rank], sizes[:rank], right[:rank]


def _packed(name: str, factor: Tensor) -> dict[str, Tensor]:
    """A factor in 8 bits, and the scale of each of its rows."""
    scale = factor.abs().amax(dim=1) / LARGEST
    steps = torch.where(scale > 0, scale, torch.ones_like(scale))[:, None]
    codes = torch.round(factor / steps).clamp(-LARGEST, LARGEST)
    return {name: codes.to(torch.int8), name + SCALE: scale}


def _unpacked(parts: Mapping[str, Tensor], name: str, shape: tuple[int, int]) -> Tensor:
    """The factor that ``_packed`` stored. Raises ValueError for one of another shape."""
    codes = expect(parts, name, shape, torch.int8)
    scale = expect(parts, name + SCALE, shape[:1], torch.float32)
    return codes.to(torch.float32) * scale[:, None]


@hookimpl
def register_encodings(registrar: Registrar) -> None:
    registrar.encoding(LowRank())
