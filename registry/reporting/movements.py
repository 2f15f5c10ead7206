"""How scores moved over the epochs: a small chart per task, all of a base on one scale."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .collecting import BaseReport, TaskReport
from .scales import Axis, Tick, linear

WIDE, HIGH = 1000, 400  # of a chart, in the units of its lines; it is stretched to the room there is


@dataclass(frozen=True)
class Line:
    """A stored layer's score: the path of its line, and the score at the first, the stored and the last epoch."""

    layer: str
    path: str
    first: str
    stored: str
    last: str


@dataclass(frozen=True)
class Movement:
    """A task's chart. Places are in per cent.

    Attributes:
        lines: of the layers that the task stores.
        others: the lines of all other layers, as one path.
        closed: how many those are.
        range_closed: the lowest and the highest of their last scores; empty if there are none.
        threshold: its place from the top; None if it is off the chart.
        threshold_text: what it is.
        best: the stored epoch.
        best_at: its place from the left.
        epochs: ticks of the epochs.
    """

    task: TaskReport
    lines: tuple[Line, ...]
    others: str
    closed: int
    range_closed: str
    threshold: float
    threshold_text: str
    best: int
    best_at: float
    epochs: tuple[Tick, ...]


@dataclass(frozen=True)
class Without:
    """A task without recorded scores; ``budget`` if it has one of its own, which methods spend without scores."""

    task: str
    method: str
    budget: bool


@dataclass(frozen=True)
class Movements:
    """The charts of a base.

    Attributes:
        y: the scale of scores.
        without: tasks that have no chart.
    """

    y: Axis | None
    charts: tuple[Movement, ...]
    without: tuple[Without, ...]


def movements(report: BaseReport) -> Movements:
    """The tasks whose history has scores, and those without."""
    scored = [one for one in report.tasks if one.history.epochs]
    without = tuple(
        Without(one.task.name, one.task.method, bool(one.task.settings.get("budget")))
        for one in report.tasks
        if not one.history.epochs
    )
    if not scored:
        return Movements(None, (), without)
    values = [score for one in scored for epoch in one.history.epochs for score in epoch.scores.values()]
    y = linear([min(values), max(values), *map(_threshold, scored)], lambda score: f"{score:z.4g}", most=5, snug=True)
    return Movements(y, tuple(_movement(one, y) for one in scored), without)


def _threshold(one: TaskReport) -> float:
    return float(one.task.settings.get("threshold", 0.0))


def _movement(one: TaskReport, y: Axis) -> Movement:
    epochs = one.history.epochs
    stored = {layer.name for layer in one.task.layers if layer.open}
    names = list(epochs[-1].scores)
    best = next((epoch for epoch in epochs if epoch.epoch == one.history.best), epochs[-1])
    x = Axis(epochs[0].epoch, max(epochs[-1].epoch, epochs[0].epoch + 1), ())
    tracks = {name: [(epoch.epoch, epoch.scores[name]) for epoch in epochs if name in epoch.scores] for name in names}
    lines = tuple(
        Line(
            name,
            _path(tracks[name], x, y),
            _text(tracks[name][0][1]),
            _text(best.scores.get(name)),
            _text(tracks[name][-1][1]),
        )
        for name in names
        if name in stored
    )
    closed = [tracks[name] for name in names if name not in stored]
    last = sorted(track[-1][1] for track in closed)
    return Movement(
        task=one,
        lines=lines,
        others="".join(_path(track, x, y) for track in closed),
        closed=len(closed),
        range_closed=f"{_text(last[0])} to {_text(last[-1])}" if last else "",
        threshold=100 - y.at(_threshold(one)),
        threshold_text=f"{_threshold(one):g}",
        best=best.epoch,
        best_at=x.at(best.epoch),
        epochs=tuple(Tick(x.at(epoch), str(epoch)) for epoch in _few([epoch.epoch for epoch in epochs])),
    )


def _text(score: float | None) -> str:
    return "" if score is None else f"{score:z.3f}"


def _few(epochs: Sequence[int]) -> Iterable[int]:
    """The first, the last and the middle one."""
    return sorted({epochs[0], epochs[len(epochs) // 2], epochs[-1]})


def _path(track: Sequence[tuple[int, float]], x: Axis, y: Axis) -> str:
    """Steps from point to point in whole units: the page may hold thousands of these lines."""
    points = [(round(x.at(epoch) * WIDE / 100), round((100 - y.at(score)) * HIGH / 100)) for epoch, score in track]
    steps = [f"l{c - a} {d - b}" for (a, b), (c, d) in pairwise(points)]
    return f"M{points[0][0]} {points[0][1]}" + ("".join(steps) or "h0")
