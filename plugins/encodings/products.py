"""Weights as products of thin matrices, with a product that rounds alike on every machine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from . import Form

MANTISSA = 53  # bits of a float64
BLOCK = 4 * 2**20  # bytes of products in float64 at a time


def exact_product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right``, rounded once: the same bits whatever order a library adds in, with or without fused additions.

    Rows of ``left`` and columns of ``right`` are first rounded to whole multiples of a power of two, with as many bits
    below their largest value as leave every partial sum exact in float64. With 22 bits for ranks up to 511 that is
    about as far from the product of the given values as a product in float32 is. It is the first slice of the
    error-free transformation of Ozaki, Ogita, Oishi and Rump (2012), doi 10.1007/s11075-011-9478-1.

    Args:
        left: ``(m, r)`` float32 on the CPU.
        right: ``(r, n)`` float32 on the CPU.

    Returns:
        ``(m, n)`` float32.
    """
    bits = (MANTISSA - left.shape[1].bit_length()) // 2
    left, right = _rounded(left, 1, bits), _rounded(right, 0, bits)
    made = torch.empty(len(left), right.shape[1])
    rows = max(1, BLOCK // max(1, right[:1].nbytes))
    room = left.new_empty(min(rows, len(left)), right.shape[1])
    for start in range(0, len(left), rows):
        some = left[start : start + rows]
        made[start : start + rows] = torch.mm(some, right, out=room[: len(some)])
    return made


def with_product(base: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """``base + up @ down``, the base seen as a matrix of ``C_out`` rows; shape and dtype are the base's.

    Args:
        base: ``(C_out, ...)``.
        up: ``(C_out, r)``, as for ``exact_product``.
        down: ``(r, d)``, likewise.
    """
    return exact_product(up, down).reshape(base.shape).to(base.dtype).add_(base)


def _rounded(values: Tensor, dim: int, bits: int) -> Tensor:
    """In float64, multiples of the power of two that is ``bits`` bits below the largest value along a dimension."""
    if not values.numel():
        return values.double()
    exponent = torch.frexp(values.abs().amax(dim, keepdim=True)).exponent
    unit = torch.ldexp(torch.ones_like(exponent, dtype=torch.float64), exponent - bits)
    return (values / unit).round_().mul_(unit)


class ThinProduct(Form):
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
        return with_product(base, *self.factors(parts, base))
