"""A matrix product that rounds alike on every machine."""

from __future__ import annotations

import torch
from torch import Tensor


def ordered_product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` in float32 with one order of additions: rank by rank, each product rounded before it is added.

    A library's product chooses its order by processor and thread count, and may fuse multiplication and addition; what
    is decoded from an artifact has to be the same bits everywhere. Costs two passes over the result a rank.

    Args:
        left: ``(m, r)`` float32 on the CPU.
        right: ``(r, n)`` float32 on the CPU.

    Returns:
        ``(m, n)``.
    """
    total = torch.zeros(left.shape[0], right.shape[1])
    for column, row in zip(left.unbind(1), right.unbind(0), strict=True):
        total.add_(column[:, None] * row)
    return total
