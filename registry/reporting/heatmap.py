"""Which task stores which layer: a table whose cells are coloured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..records import LayerInfo, TaskLayer
from .collecting import BaseReport, TaskReport

NARROW = 3  # columns of a stage whose name does not fit above them
RAISED, HIGH = 1.5, 3.0  # times the threshold: where the shades of open gates begin


@dataclass(frozen=True)
class Cell:
    """One layer of one task: how it looks, what it says, what it says at length."""

    look: str
    text: str
    title: str


@dataclass(frozen=True)
class Column:
    """A layer; ``label`` leaves out what the stage above it says already, ``tasks`` is how many store it."""

    name: str
    label: str
    tasks: int


@dataclass(frozen=True)
class Stage:
    """Neighbouring layers of one stage; the name of a narrow one is left to its layers."""

    name: str
    columns: tuple[Column, ...]

    @property
    def narrow(self) -> bool:
        return len(self.columns) < NARROW


@dataclass(frozen=True)
class Row:
    """A task and its cells, by stage, in the order of the columns."""

    task: TaskReport
    stages: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class HeatMap:
    """Tasks by layers; ``looks`` are those that appear, for the legend."""

    stages: tuple[Stage, ...]
    rows: tuple[Row, ...]
    looks: frozenset[str]


def heat_map(report: BaseReport) -> HeatMap:
    """The gated layers of a base, and its norms where a task has gates for them."""
    states = {one.task.name: {layer.name: layer for layer in one.task.layers} for one in report.tasks}
    scored = {layer.name for own in states.values() for layer in own.values() if layer.score is not None}
    shown = [layer for layer in report.base.layers if layer.kind != "norm" or layer.name in scored]
    groups = [tuple(members) for _, members in groupby(shown, key=lambda layer: layer.stage)]
    rows = tuple(
        Row(one, tuple(tuple(_cell(one, layer, states[one.task.name]) for layer in group) for group in groups))
        for one in report.tasks
    )
    stored = Counter(name for own in states.values() for name, layer in own.items() if layer.open)
    stages = tuple(_stage(group, stored) for group in groups)
    return HeatMap(stages, rows, frozenset(cell.look for row in rows for cells in row.stages for cell in cells))


def _stage(layers: Sequence[LayerInfo], stored: Mapping[str, int]) -> Stage:
    """Norms come after all layers, so two stages can have one name."""
    name = layers[0].stage
    prefix = f"{name}." if len(layers) >= NARROW else ""
    columns = (Column(layer.name, layer.name.removeprefix(prefix), stored.get(layer.name, 0)) for layer in layers)
    return Stage(name, tuple(columns))


def _cell(one: TaskReport, layer: LayerInfo, states: Mapping[str, TaskLayer]) -> Cell:
    state = states.get(layer.name)
    stored = state is not None and state.open
    if state is None or state.score is None:
        text, word = ("yes", "stored") if stored else ("no", "not stored")
        return Cell("stored" if stored else "not", text, f"{layer.name}: {word}")
    look = _look(stored, state.score, float(one.task.settings.get("threshold", 0.0)))
    return Cell(
        look, f"{state.score:z.2f}", f"{layer.name}: {'open' if stored else 'closed'}, score {state.score:z.3f}"
    )


def _look(stored: bool, score: float, threshold: float) -> str:
    """How far the score is from the threshold, in a few steps; a threshold of 0 or less has no multiples."""
    if not stored:
        return "near" if threshold > 0 and score >= threshold / 2 else "closed"
    times = score / threshold if threshold > 0 else 1.0
    return "open3" if times >= HIGH else "open2" if times >= RAISED else "open1"
