"""Accuracy against bytes: one mark per task, whose shape and colour say its method."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..records import Task
from ..units import percent, size
from .collecting import BaseReport
from .scales import Axis, linear, logarithmic

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "wedge", "bar")
COLOURS = 7  # classes m0 to m6 of the style sheet
LABELLED = 14  # more names than this would cover each other
PLOT = (680.0, 340.0)  # a usual size of the plot in pixels, by which names are kept apart
SIDES = (("start", (9.0, 4.0)), ("end", (-9.0, 4.0)), ("middle", (0.0, -12.0)), ("middle", (0.0, 20.0)))
LETTER, LINE = 6.6, 15.0  # a letter's width and a line's height in pixels

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class Method:
    """A method in the legend; the 8th one has the first colour again, with another shape."""

    name: str
    shape: str
    colour: str


@dataclass(frozen=True)
class Point:
    """A task. Places are in per cent from the left and the top.

    Attributes:
        anchor: on which side of the name the mark is: ``start``, ``end`` or ``middle`` (above or below).
        shift: of the name from the mark in pixels, right and down.
        named: whether there is room for the name.
        measured: on ``test`` or ``validation`` images.
    """

    task: str
    method: Method
    x: float
    y: float
    accuracy: str
    bytes: str
    measured: str
    anchor: str = ""
    shift: tuple[float, float] = (0.0, 0.0)
    named: bool = False


@dataclass(frozen=True)
class Scatter:
    """``absent`` are tasks without a measured accuracy."""

    x: Axis
    y: Axis
    points: tuple[Point, ...]
    methods: tuple[Method, ...]
    absent: tuple[str, ...]


def accuracy(task: Task) -> tuple[float, str] | None:
    """On test images, else on validation images, and which; None for a task that was not measured."""
    for split, measured in (("test", "test"), ("val", "validation")):
        if f"{split}/accuracy" in task.metrics:
            return float(task.metrics[f"{split}/accuracy"]), measured
    return None


def scatter(report: BaseReport) -> Scatter | None:
    """None if no task was measured."""
    measured_tasks = [(item.task, measured) for item in report.tasks if (measured := accuracy(item.task))]
    if not measured_tasks:
        return None
    x = logarithmic([task.bytes for task, _ in measured_tasks], _round_size)
    y = linear([share for _, (share, _) in measured_tasks], lambda share: f"{100 * share:.4g} %")
    names = sorted({task.method for task, _ in measured_tasks})
    methods = {name: Method(name, *_mark(index)) for index, name in enumerate(names)}
    points = [
        Point(
            task.name, methods[task.method], x.at(task.bytes), 100 - y.at(share), percent(share), size(task.bytes), on
        )
        for task, (share, on) in measured_tasks
    ]
    absent = tuple(item.task.name for item in report.tasks if not accuracy(item.task))
    return Scatter(x, y, tuple(_named(points)), tuple(methods.values()), absent)


def _mark(index: int) -> tuple[str, str]:
    return SHAPES[(index + index // COLOURS) % len(SHAPES)], f"m{index % COLOURS}"


def _round_size(count: float) -> str:
    """A tick: ``20 kB``, not ``20.0 kB``."""
    return size(count).replace(".0 ", " ")


def _named(points: list[Point]) -> list[Point]:
    """Give names a place beside their marks where they cover neither a mark nor another name.

    A name without such a place only shows while its mark has the focus or the mouse: towards the middle.
    """
    taken = [_around(point) for point in points]
    placed = []
    for point in points:
        boxes = {side: _text_box(point, *side) for side in SIDES} if len(points) <= LABELLED else {}
        free = next((side for side, box in boxes.items() if _is_free(box, taken)), None)
        if free:
            taken.append(boxes[free])
        anchor, shift = free or SIDES[point.x > 50]
        placed.append(replace(point, anchor=anchor, shift=shift, named=free is not None))
    return placed


def _around(point: Point) -> Box:
    x, y = point.x / 100 * PLOT[0], point.y / 100 * PLOT[1]
    return x - 6, y - 6, x + 6, y + 6


def _text_box(point: Point, anchor: str, shift: tuple[float, float]) -> Box:
    width = LETTER * len(point.task)
    x, base = point.x / 100 * PLOT[0] + shift[0], point.y / 100 * PLOT[1] + shift[1]
    left = x - {"start": 0.0, "end": width, "middle": width / 2}[anchor]
    return left, base - LINE + 4, left + width, base + 4


def _is_free(box: Box, taken: list[Box]) -> bool:
    """Whether the box is in the plot from left to right, and covers no other."""
    left, top, right, bottom = box
    inside = left >= 0 and right <= PLOT[0]
    return inside and all(
        left >= other[2] or other[0] >= right or top >= other[3] or other[1] >= bottom for other in taken
    )
