"""Axes: round numbers that a reader can hold a chart against, and where values lie between its ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
MOST_STEPS, MOST_TICKS = 5, 6  # of a linear axis, of a logarithmic one


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in per cent of its length."""

    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A range of values on a line, with round ones in between as ticks.

    On a ``logarithmic`` one equal distances are equal ratios; both ends are then above zero.
    """

    low: float
    high: float
    ticks: tuple[Tick, ...]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Where ``value`` lies, in per cent, to six decimals.

        Unrounded, the middle of a logarithmic axis is just above or below 50, as the value has it and as the machine
        computes logarithms, and a name stands now on this side of its mark, now on the other.
        """
        low, high, place = self.low, self.high, value
        if self.logarithmic:
            low, high, place = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        return round(100 * min(1.0, max(0.0, (place - low) / (high - low))), 6)


def linear(values: Iterable[float], label: Callable[[float], str]) -> Axis:
    """An axis around ``values``, of which there is at least one, that begins and ends at round numbers."""
    listed = list(values)
    low, high = min(listed), max(listed)
    if high - low < 1e-9:
        low, high = low - (abs(low) / 10 or 0.5), high + (abs(high) / 10 or 0.5)
    step = _round_step((high - low) / MOST_STEPS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    bare = Axis(first * step, last * step, ())
    ticks = tuple(Tick(bare.at(index * step), label(index * step)) for index in range(first, last + 1))
    return Axis(bare.low, bare.high, ticks)


def logarithmic(values: Iterable[float], label: Callable[[float], str]) -> Axis:
    """An axis around ``values``, at least one and all above zero; its ticks are 1, 2 or 5 times powers of 10."""
    listed = list(values)
    low, high = min(listed) / 1.3, max(listed) * 1.3
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        marks = [value for power in powers for factor in factors if low <= (value := factor * 10.0**power) <= high]
        if len(marks) <= MOST_TICKS:
            break
    marks = marks[:: math.ceil(len(marks) / MOST_TICKS)] if marks else listed[:1]
    bare = Axis(low, high, (), logarithmic=True)
    return Axis(low, high, tuple(Tick(bare.at(mark), label(mark)) for mark in marks), logarithmic=True)


def _round_step(least: float) -> float:
    """The smallest round number that is at least so much."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * step for step in STEPS if power * step >= least * (1 - 1e-9))
