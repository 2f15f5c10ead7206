"""A matrix product that rounds alike on every machine."""

from __future__ import annotations

import torch
from torch import Tensor

MANTISSA = 53  # bits of a float64
BLOCK = 4 * 2**20  # bytes of products in float64 at a time


def exact_product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right``, rounded once: the same bits whatever order a library adds in, with or without fused additions.

    Rows of ``left``, ``(m, r)`` float32 on the CPU, and columns of ``right``, ``(r, n)``, are first rounded to whole
    multiples of a power of two, with as many bits below their largest value as leave every partial sum exact in
    float64. With 22 bits for ranks up to 511 that is about as far from the product of the given values as a product in
    float32 is. It is the first slice of the error-free transformation of Ozaki, Ogita, Oishi and Rump (2012), doi
    10.1007/s11075-011-9478-1. The product is ``(m, n)`` float32.
    """
    bits = (MANTISSA - left.shape[1].bit_length()) // 2
    left, right = _rounded(left, 1, bits), _rounded(right, 0, bits)
    product = torch.empty(len(left), right.shape[1])
    rows = max(1, BLOCK // max(1, right[:1].nbytes))
    room = left.new_empty(min(rows, len(left)), right.shape[1])
    for start in range(0, len(left), rows):
        some = left[start : start + rows]
        product[start : start + rows] = torch.mm(some, right, out=room[: len(some)])
    return product


def _rounded(values: Tensor, dim: int, bits: int) -> Tensor:
    """In float64, multiples of the power of two that is ``bits`` bits below the largest value along a dimension."""
    if not values.numel():
        return values.double()
    exponent = torch.frexp(values.abs().amax(dim, keepdim=True)).exponent
    unit = torch.ldexp(torch.ones_like(exponent, dtype=torch.float64), exponent - bits)
    return (values / unit).round_().mul_(unit)
