"""Two things measured in turns, and what their ratio says."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy


@dataclass(frozen=True)
class Ratio:
    """One comparison; ``target`` is what it should not exceed, or not fall below where ``at_least``."""

    part: str
    what: str
    ratio: float
    low: float
    high: float
    target: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        holds = self.ratio >= self.target if self.at_least else self.ratio <= self.target
        return f"{'holds' if holds else 'MISSES'} {'>=' if self.at_least else '<='} {self.target}"


def in_turns(first: Callable[[], float], second: Callable[[], float], pairs: int) -> list[float]:
    """``first`` over ``second``, pair by pair; who begins changes from pair to pair."""
    ratios = []
    for pair in range(pairs):
        if pair % 2:
            below = second()
            above = first()
        else:
            above = first()
            below = second()
        ratios.append(above / below)
    return ratios


def summed_up(part: str, what: str, ratios: Sequence[float], **more: Any) -> Ratio:
    """The median, and an interval by resampling."""
    chance = numpy.random.default_rng(0)
    medians = numpy.median(chance.choice(numpy.asarray(ratios), (4000, len(ratios))), axis=1)
    low, high = numpy.quantile(medians, (0.025, 0.975))
    return Ratio(part, what, statistics.median(ratios), float(low), float(high), **more)


def exactly(part: str, what: str, ratio: float, **more: Any) -> Ratio:
    """A ratio that is the same each time."""
    return Ratio(part, what, ratio, ratio, ratio, **more)


def timed(work: Callable[[], Any]) -> Callable[[], float]:
    """Seconds of each call, after one that is not counted."""
    work()

    def measured() -> float:
        begun = perf_counter()
        work()
        return perf_counter() - begun

    return measured
