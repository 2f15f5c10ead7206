"""Limits on what a task stores, in bytes or parameters, as a method that steers towards them sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import Stored

__all__ = ["Limit"]


@dataclass(frozen=True)
class Limit:
    """One limit.

    Attributes:
        amount: that may be used.
        prices: what storing a tensor, or rows of one, uses of it, by name; what is not named is free.
        in_bytes: whether the unit is bytes; parameters otherwise.
        each_factor: what each set of factors uses beside its own size, such as its lines in a file's header.
    """

    amount: int
    prices: Mapping[str, int]
    in_bytes: bool = True
    each_factor: int = 0

    @property
    def unit(self) -> str:
        return "bytes" if self.in_bytes else "parameters"

    def used(self, stored: Stored) -> int:
        """What storing this uses."""
        plain = sum(self.prices.get(name, 0) for name in stored.tensors)
        sizes = stored.factors.values()
        return plain + sum((size.bytes if self.in_bytes else size.params) + self.each_factor for size in sizes)

    def holds(self, stored: Stored) -> bool:
        return self.used(stored) <= self.amount
