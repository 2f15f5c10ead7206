"""Small integers in bytes: value after value, the first in the lowest bits of the first byte."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor


def packed_bytes(values: int, bits: int) -> int:
    """Bytes that so many values take."""
    return ceil(values * bits / 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Integers from 0 to ``2**bits - 1``, of any shape and dtype, as ``(packed_bytes(codes.numel(), bits),)`` uint8.

    A value has at most 8 bits.
    """
    flat = codes.reshape(-1).to(torch.int64)
    eights = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).reshape(-1, 8)
    words = (eights << (torch.arange(8, device=flat.device) * bits)).sum(dim=1)  # 8 values of at most 8 bits fit 64
    packed = (words[:, None] >> (torch.arange(bits, device=flat.device) * 8) & 255).to(torch.uint8).reshape(-1)
    return packed[: packed_bytes(len(flat), bits)]


def unpack(packed: Tensor, bits: int, values: int) -> Tensor:
    """The first so many values that ``pack`` put into these bytes, int64."""
    whole = torch.nn.functional.pad(packed, (0, -len(packed) % bits)).reshape(-1, bits).to(torch.int64)
    words = (whole << (torch.arange(bits) * 8)).sum(dim=1)
    codes: Tensor = words[:, None] >> (torch.arange(8) * bits) & (2**bits - 1)
    return codes.reshape(-1)[:values]
