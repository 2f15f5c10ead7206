"""svd: the difference from the base as a low-rank product, from its truncated singular value decomposition.

A delta is cut off after the fewest singular values that leave at most ``ERROR`` of its Frobenius norm behind. The
factors are stored as low-rank ones are in 8 bits. Where that would take no fewer bytes than the delta in ``int8``, that
is stored.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..spec import Registrar, hookimpl
from . import Encoding
from .floats import BFloat16Values
from .integers import Int8
from .low_rank import DOWN, PackedLowRank

ERROR = 0.2  # of the delta's Frobenius norm, as much as int3 leaves of normally distributed deltas
WHOLE = Int8()
FACTORS = PackedLowRank(WHOLE)


class Svd(Encoding):
    """Pays where a task moved a layer along few directions."""

    name = "svd"
    summary = "deltas as low-rank products in 8 bits, within a fifth of their norm; else as int8"
    fixed = False
    low_rank_form = FACTORS.name
    vectors = BFloat16Values()

    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        matrix = (value - base).reshape(len(value), -1)
        if not matrix.isfinite().all():  # there is no decomposition of it
            return WHOLE.encode(value, base)
        left, sizes, right = _truncated(matrix)
        if FACTORS.nbytes(len(sizes), *matrix.shape) >= self.nbytes(tuple(base.shape)):
            return WHOLE.encode(value, base)
        roots = sizes.sqrt()
        return FACTORS.parts(left * roots, roots[:, None] * right)

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        return (FACTORS if DOWN in parts else WHOLE).decode(parts, base)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return WHOLE.nbytes(shape)


def _truncated(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular values and their vectors, ``(m, r)``, ``(r,)`` and ``(r, n)``, with one of them at least."""
    largest = float(matrix.abs().max()) or 1.0  # scaled, and in float64: LAPACK does not converge on all small deltas
    left, sizes, right = torch.linalg.svd(matrix.double() / largest, full_matrices=False)
    left, sizes, right = left.to(matrix), (sizes * largest).to(matrix), right.to(matrix)
    behind = sizes.double().square().flip(0).cumsum(0).flip(0)  # what is left before each of them
    rank = max(1, int((behind > ERROR**2 * behind[0]).sum()))
    return left[:, :rank], sizes[:rank], right[:rank]


@hookimpl
def register_encodings(registrar: Registrar) -> None:
    registrar.encoding(Svd())
