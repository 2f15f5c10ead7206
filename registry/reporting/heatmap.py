"""Which task stores which layer: a table whose cells are coloured.

A task with scores shows how far each is from the threshold, any other how much of each layer it stores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..records import LayerInfo, TaskLayer
from .collecting import BaseReport, TaskReport
from .shares import share_text, stored_shares

NARROW = 3  # columns of a stage whose name does not fit above them
RAISED, HIGH = 1.5, 3.0  # times the threshold: where the shades of open gates begin
SOME, MUCH = 0.01, 0.1  # of a layer's bytes: where the denser hatches of stored layers begin
LOOKS = {
    "open3": f"open, score from {HIGH:g} × the threshold",
    "open2": f"open, from {RAISED:g} × the threshold",
    "open1": "open",
    "near": "closed, from half the threshold",
    "closed": "closed",
    "stored3": f"stored, {100 * MUCH:g} % of the layer's bytes or more",
    "stored2": f"stored, {100 * SOME:g} % to {100 * MUCH:g} % of its bytes",
    "stored1": f"stored, less than {100 * SOME:g} % of its bytes",
    "not": "not stored",
}


@dataclass(frozen=True)
class Cell:
    """One layer of one task: how it looks (a key of ``LOOKS``), what it says, what it says at length."""

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
    """Tasks by layers; ``legend`` has the looks that appear, with what they say."""

    stages: tuple[Stage, ...]
    rows: tuple[Row, ...]
    legend: tuple[tuple[str, str], ...]


def heat_map(report: BaseReport) -> HeatMap:
    """The gated layers of a base, and its norms where a task has gates for them."""
    gated = {layer.name for task in report.tasks for layer in task.task.layers if _has_gate(task, layer)}
    shown = [layer for layer in report.base.layers if layer.kind != "norm" or layer.name in gated]
    groups = [tuple(members) for _, members in groupby(shown, key=lambda layer: layer.stage)]
    rows = tuple(_row(task, groups, report.base.layers) for task in report.tasks)
    stored = Counter(layer.name for task in report.tasks for layer in task.task.layers if layer.open)
    stages = tuple(_stage(group, stored) for group in groups)
    looks = {cell.look for row in rows for cells in row.stages for cell in cells}
    return HeatMap(stages, rows, tuple((look, says) for look, says in LOOKS.items() if look in looks))


def _has_gate(task: TaskReport, norm: TaskLayer) -> bool:
    """Within a budget gates have no scores."""
    return norm.score is not None or task.task.settings.get("norms") == "gated"


def _stage(layers: Sequence[LayerInfo], stored: Mapping[str, int]) -> Stage:
    """Norms come after all layers, so two stages can have one name."""
    name = layers[0].stage
    prefix = f"{name}." if len(layers) >= NARROW else ""
    columns = (Column(layer.name, layer.name.removeprefix(prefix), stored.get(layer.name, 0)) for layer in layers)
    return Stage(name, tuple(columns))


def _row(task: TaskReport, groups: Iterable[Sequence[LayerInfo]], layers: Iterable[LayerInfo]) -> Row:
    states = {layer.name: layer for layer in task.task.layers}
    shares = stored_shares(task.task.layers, layers)
    threshold = float(task.task.settings.get("threshold", 0.0))

    def cell(name: str) -> Cell:
        state = states.get(name)
        if state is None or state.score is None:
            return _share_cell(name, shares.get(name, 0.0) if state is not None and state.open else None)
        return _score_cell(name, state.open, state.score, threshold)

    return Row(task, tuple(tuple(cell(layer.name) for layer in group) for group in groups))


def _share_cell(name: str, share: float | None) -> Cell:
    """Of a layer without a score: how much of it is stored, None if it is the base's."""
    if share is None:
        return Cell("not", share_text(0.0), f"{name}: not stored")
    shown = round(share, 3)  # as the text has it
    look = "stored3" if shown >= MUCH else "stored2" if shown >= SOME else "stored1"
    return Cell(look, share_text(share), f"{name}: {share_text(share)} of the layer's bytes stored")


def _score_cell(name: str, stored: bool, score: float, threshold: float) -> Cell:
    title = f"{name}: {'open' if stored else 'closed'}, score {score:z.3f}"
    return Cell(_look(stored, score, threshold), f"{score:z.2f}", title)


def _look(stored: bool, score: float, threshold: float) -> str:
    """How far the score is from the threshold, in a few steps; a threshold of 0 or less has no multiples."""
    if not stored:
        return "near" if threshold > 0 and score >= threshold / 2 else "closed"
    times = score / threshold if threshold > 0 else 1.0
    return "open3" if times >= HIGH else "open2" if times >= RAISED else "open1"
