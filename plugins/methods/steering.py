"""Steering gates towards a budget: how strong the penalty has to be, and which gates are open in the end."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

from . import Stored
from .limits import Limit

FIXED_AT = 0.4  # share of the run after which the open gates are chosen and stay
RATE = 20.0  # how fast the penalty's strength follows: e-folds a run while twice the budget is open
EXCESS = 3.0  # beyond so many times the budget it follows no faster


class Steering:
    """A dual variable on the constraint "what is open fits the limits".

    Args:
        limits: what may be stored.
        costs: what each gate stores while open.
        always: what is stored whatever the gates do.
    """

    def __init__(self, limits: Sequence[Limit], costs: Sequence[Stored], always: Stored) -> None:
        self.free = [limit.amount - limit.used(always) for limit in limits]
        self.prices = [[limit.used(cost) for cost in costs] for limit in limits]
        self.multiplier = 1.0
        self.done = 0.0

    def possible(self) -> list[bool]:
        """Which gates could be open if no other were."""
        return [
            all(price <= free for price, free in zip(prices, self.free, strict=True))
            for prices in zip(*self.prices, strict=True)
        ]

    def used(self, opened: Sequence[bool]) -> float:
        """What open gates use of the limits: the largest share, 1 for all there is."""
        shares = [
            sum(price for price, is_open in zip(prices, opened, strict=True) if is_open) / max(free, 1)
            for prices, free in zip(self.prices, self.free, strict=True)
        ]
        return max(shares)

    def follow(self, opened: Sequence[bool], done: float) -> None:
        """Make the penalty stronger while more is open than may be, and weaker while less is."""
        excess = min(self.used(opened), EXCESS) - 1
        self.multiplier *= exp(RATE * excess * (done - self.done))
        self.done = done

    def choose(self, worth: Sequence[float]) -> list[bool]:
        """The gates to open: from the most worth downwards, each that still fits."""
        left = list(self.free)
        opened = [False] * len(worth)
        for gate in sorted(range(len(worth)), key=lambda index: (-worth[index], index)):
            needed = [prices[gate] for prices in self.prices]
            if all(price <= free for price, free in zip(needed, left, strict=True)):
                opened[gate] = True
                left = [free - price for price, free in zip(needed, left, strict=True)]
        return opened
