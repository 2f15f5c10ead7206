"""What tasks cost, as stacked bars: each task by part, and all of them against their budgets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..records import TaskCost
from ..units import number, percent, size
from .collecting import BaseReport, TaskReport
from .limits import TaskLimit, task_limits

PARTS = ("weights", "norms", "head")
LABELS = {
    "weights": "weights of layers",
    "norms": "norms",
    "head": "head",
    "common": "in common with other tasks",
    "elsewhere": "tasks on other bases",
}
STRETCH = 1.5  # times the longest bar: tasks' limits up to here lengthen the scale, those further away are not drawn


@dataclass(frozen=True)
class Segment:
    """A part of a bar, a key of ``LABELS``, with its place in per cent of the longest bar, and its amount as text."""

    part: str
    start: float
    width: float
    amount: str


@dataclass(frozen=True)
class Mark:
    """Where a task's own budget lies on its bar, in per cent; ``whole`` if it limits the bar, not only its beginning.

    Weights and norms come first on a bar, so a mark for these two alone is passed by the head behind them.
    """

    at: float
    whole: bool
    label: str


@dataclass(frozen=True)
class Bar:
    """Segments from left to right, what they come to, and the limits that are on the scale."""

    segments: tuple[Segment, ...]
    total: str
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class CostRow:
    """A task with what its own budget allows, or a set of tasks with tensors in common, which are stored once."""

    name: str
    is_set: bool
    params: Bar
    bytes: Bar
    budget: str = ""


@dataclass(frozen=True)
class BudgetRow:
    """What is used of one limit; ``limit_at`` is where the limit lies on the bar, in per cent."""

    scope: str
    what: str
    bar: Bar
    limit: str
    share: str
    limit_at: float
    over: bool


def cost_rows(report: BaseReport) -> tuple[CostRow, ...]:
    """Tasks, then sets, on one scale for parameters and one for bytes."""
    backbone = report.base.backbone_params
    limits = [task_limits(str(task.task.settings.get("budget") or ""), backbone) for task in report.tasks]
    tasks = [(task.task.name, _task_params(task.cost), _task_bytes(task)) for task in report.tasks]
    sets = [(shared.name, {"common": shared.params}, {"common": shared.bytes}) for shared in report.cost.sets]
    every = [limit for task_limit in limits for limit in task_limit]
    most_params = _scale([params for _, params, _ in tasks + sets], every, in_bytes=False)
    most_bytes = _scale([taken for _, _, taken in tasks + sets], every, in_bytes=True)
    rows = []
    for index, (name, params, taken) in enumerate(tasks + sets):
        task_limit = limits[index] if index < len(tasks) else ()
        rows.append(
            CostRow(
                name,
                index >= len(tasks),
                replace(_bar(params, most_params, number), marks=_marks(task_limit, most_params, in_bytes=False)),
                replace(_bar(taken, most_bytes, size), marks=_marks(task_limit, most_bytes, in_bytes=True)),
                ", ".join(limit.label for limit in task_limit),
            )
        )
    return tuple(rows)


def _scale(bars: Sequence[Mapping[str, int]], limits: Iterable[TaskLimit], *, in_bytes: bool) -> float:
    """The longest bar, or a limit a little beyond it."""
    longest = max((sum(parts.values()) for parts in bars), default=0)
    near = [limit.amount for limit in limits if limit.in_bytes == in_bytes and limit.amount <= STRETCH * longest]
    return max([longest, *near])


def _marks(limits: Iterable[TaskLimit], whole: float, *, in_bytes: bool) -> tuple[Mark, ...]:
    return tuple(
        Mark(100 * limit.amount / whole, limit.whole, limit.label)
        for limit in limits
        if limit.in_bytes == in_bytes and limit.amount <= whole
    )


def budget_rows(report: BaseReport) -> tuple[BudgetRow, ...]:
    """A bar for each limit that the base's tasks count against."""
    rows = []
    for use in report.budgets:
        for what, used, limit in (
            ("bytes", use.used_bytes, use.max_bytes),
            ("parameters", use.used_params, use.max_params),
        ):
            if limit is None:
                continue
            shown = size if what == "bytes" else number
            whole = max(used, limit) or 1
            parts = _of_all(report, what)
            if use.base is None:
                parts["elsewhere"] = max(0, used - sum(parts.values()))
            rows.append(
                BudgetRow(
                    scope=f"the base {use.base}" if use.base else "the whole registry",
                    what=what,
                    bar=_bar(parts, whole, shown),
                    limit=shown(limit),
                    share=percent(used / limit) if limit else "",
                    limit_at=100 * limit / whole,
                    over=used > limit,
                )
            )
    return tuple(rows)


def _task_params(cost: TaskCost) -> dict[str, int]:
    return dict(zip(PARTS, (cost.params.weights, cost.params.norms, cost.params.head), strict=True))


def _task_bytes(task: TaskReport) -> dict[str, int]:
    """Layers and norms as the catalog has them; the rest of the file is the head and the header."""
    norms = sum(layer.bytes for layer in task.task.layers if layer.kind == "norm")
    weights = sum(layer.bytes for layer in task.task.layers) - norms
    return dict(zip(PARTS, (weights, norms, task.task.bytes - weights - norms), strict=True))


def _of_all(report: BaseReport, what: str) -> dict[str, int]:
    """The parts of all tasks of the base together."""
    each = [_task_bytes(item) if what == "bytes" else _task_params(item.cost) for item in report.tasks]
    summed = {part: sum(parts[part] for parts in each) for part in PARTS}
    shared = sum(item.bytes if what == "bytes" else item.params for item in report.cost.sets)
    return {**summed, "common": shared} if shared else summed


def _bar(parts: Mapping[str, int], whole: float, shown: Callable[[float], str]) -> Bar:
    """Every part of it, also those that take nothing."""
    segments, start = [], 0.0
    for part, amount in parts.items():
        width = 100 * amount / whole if whole else 0.0
        segments.append(Segment(part, start, width, shown(amount)))
        start += width
    return Bar(tuple(segments), shown(sum(parts.values())))
