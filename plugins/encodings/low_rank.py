"""low-rank, and low-rank-int8, -int4, -int3: low-rank products, in 32 or in few bits.

In few bits, both factors are stored with a row and a scale for each rank: ``up`` as ``(r, C_out)``, ``down`` as
``(r, d)``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from ..spec import Registrar, hookimpl
from . import Form, expect
from .exact_product import exact_product
from .integers import Int3, Int4, Int8, Integers

UP, DOWN, SCALE = "up", "down", "-scale"


class LowRankForm(Form):
    """``base + up @ down``, with the base seen as a matrix ``(C_out, d)`` and a rank ``r`` far below both.

    The factors of one such form can be put into another one, whatever method they come from.

    Attributes:
        exact: whether factors come back to the last bit.
    """

    exact: bool = False

    @abstractmethod
    def parts(self, up: Tensor, down: Tensor) -> dict[str, Tensor]:
        """What is stored of factors ``(C_out, r)`` and ``(r, d)``, float32 on the CPU."""

    @abstractmethod
    def nbytes(self, rank: int, rows: int, columns: int) -> int:
        """Bytes of the parts for a ``(rows, columns)`` matrix."""

    @abstractmethod
    def factors(self, parts: Mapping[str, Tensor], base: Tensor) -> tuple[Tensor, Tensor]:
        """The factors that ``parts`` stored, rounded or not. Raises ValueError as ``decode`` does."""

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        up, down = self.factors(parts, base)
        return exact_product(up, down).reshape(base.shape).to(base.dtype).add_(base)


class PlainLowRank(LowRankForm):
    """``base + up @ down``, the base seen as a matrix of ``C_out`` rows."""

    name = "low-rank"
    summary = "the base's weight plus a low-rank product"
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


class PackedLowRank(LowRankForm):
    """``base + up^T down``, the base seen as a matrix of ``C_out`` rows; both factors are put into ``integers``."""

    def __init__(self, integers: Integers) -> None:
        self.integers = integers
        self.name = f"low-rank-{integers.name}"
        self.summary = f"the base's weight plus a low-rank product in {integers.bits} bits"

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
