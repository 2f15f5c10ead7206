"""low-rank, and low-rank-int8, -int4, -int3: the product of two thin matrices, in 32 or in few bits.

In few bits, both factors are stored with a row and a scale for each rank: ``up`` as ``(r, C_out)``, ``down`` as
``(r, d)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from ..spec import Registrar, hookimpl
from . import expect
from .integers import Int3, Int4, Int8, Integers
from .products import ThinProduct

UP, DOWN, SCALE = "up", "down", "-scale"


class PlainLowRank(ThinProduct):
    """``base + up @ down``, the base seen as a matrix of ``C_out`` rows."""

    name = "low-rank"
    summary = "the base's weight plus the product of two thin matrices"
    exact = True

    def parts(self, up: Tensor, down: Tensor) -> dict[str, Tensor]:
        return {UP: up, DOWN: down}

    def nbytes(self, rank: int, rows: int, columns: int) -> int:
        return 4 * rank * (rows + columns)

    def factors(self, parts: Mapping[str, Tensor], base: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = len(base), prod(base.shape[1:])
        rank = len(parts[DOWN]) if parts[DOWN].ndim else 0
        up = expect(parts, UP, (rows, rank), torch.float32)
        return up, expect(parts, DOWN, (rank, columns), torch.float32)


class PackedLowRank(ThinProduct):
    """``base + up^T down``, the base seen as a matrix of ``C_out`` rows.

    Args:
        integers: what the factors are put into.
    """

    def __init__(self, integers: Integers) -> None:
        self.integers = integers
        self.name = f"low-rank-{integers.name}"
        self.summary = f"the base's weight plus the product of two thin matrices in {integers.bits} bits"

    def parts(self, up: Tensor, down: Tensor) -> dict[str, Tensor]:
        return {**self._packed(UP, up.T.contiguous()), **self._packed(DOWN, down)}

    def nbytes(self, rank: int, rows: int, columns: int) -> int:
        return sum(self.integers.nbytes((rank, length)) for length in (rows, columns))

    def factors(self, parts: Mapping[str, Tensor], base: Tensor) -> tuple[Tensor, Tensor]:
        up = self._unpacked(parts, UP, len(base))
        down = self._unpacked(parts, DOWN, prod(base.shape[1:]))
        if len(up) != len(down):
            raise ValueError(f"factors of ranks {len(up)} and {len(down)} have no product")
        return up.T, down

    def _packed(self, name: str, factor: Tensor) -> dict[str, Tensor]:
        encoded = self.integers.encode(factor, torch.zeros_like(factor))
        return {name + (SCALE if part else ""): tensor for part, tensor in encoded.items()}

    def _unpacked(self, parts: Mapping[str, Tensor], name: str, length: int) -> Tensor:
        """A factor of rows of this length. Raises ValueError for any other."""
        if name not in parts or name + SCALE not in parts:
            raise ValueError(f"expected {name} and its scale, found {', '.join(sorted(parts)) or 'nothing'}")
        scale = parts[name + SCALE]
        return self.integers.decode({"": parts[name], "scale": scale}, torch.zeros(scale.numel(), length))


PACKED = {form.name: form for form in (PackedLowRank(integers) for integers in (Int8(), Int4(), Int3()))}


@hookimpl
def register_encodings(registrar: Registrar) -> None:
    registrar.encoding(PlainLowRank())
    for form in PACKED.values():
        registrar.encoding(form)
