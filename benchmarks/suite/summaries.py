"""What rows come to: which of them count, and means with their standard errors."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import nan, sqrt
from statistics import mean, stdev

from .contenders import CONTENDERS
from .rows import Row
from .run import RATES, chosen, middle
from .tasks import TASKS

REFERENCE = "full"


def selected(found: Sequence[Row], size: str | None, epochs: int | None) -> list[Row]:
    """The rows of one size of the suite and one length of training; None for whichever the file has.

    Raises:
        ValueError: if it has several, with what to type.
    """
    rest = [row for row in found if size in (None, row.size) and epochs in (None, row.epochs)]
    kinds = Counter((row.size, row.epochs) for row in rest)
    if len(kinds) > 1:
        told = ", ".join(
            f"size {size} with {epochs} epochs ({count})" for (size, epochs), count in sorted(kinds.items())
        )
        most = kinds.most_common(1)[0][0]
        raise ValueError(
            f"Rows of different sizes or epochs do not go into one table: {told}. "
            f"Choose, such as --size {most[0]} --epochs {most[1]}."
        )
    return rest


def finals(found: Sequence[Row]) -> list[Row]:
    """The rows at the learning rate that its method and backbone ended with."""
    best = chosen(found)
    return [row for row in found if best.get((row.method, row.backbone), row.lr) == row.lr]


def middles(found: Sequence[Row]) -> list[Row]:
    """The rows at the middle of each grid of learning rates, where everybody would be without a search."""
    return [
        row
        for row in found
        if row.method in CONTENDERS and row.backbone in RATES and row.lr == middle(CONTENDERS[row.method], row.backbone)
    ]


def ordered(found: Iterable[Row]) -> list[Row]:
    """Rows in an order that does not depend on which run finished first."""
    places = {name: place for place, name in enumerate([*RATES, *TASKS])}
    last = len(places)
    return sorted(
        found, key=lambda row: (places.get(row.backbone, last), places.get(row.task, last), row.task, row.seed)
    )


def label(row: Row) -> str:
    """The row's name in tables."""
    return f"{row.method}, re-encoded as {row.recoded}" if row.recoded else row.method


def labels(found: Iterable[Row]) -> list[str]:
    """Every name, in the order of ``CONTENDERS``."""
    order = list(CONTENDERS)
    places = {label(row): (order.index(row.method) if row.method in order else len(order)) for row in found}
    return sorted(places, key=places.__getitem__)


def named(found: Iterable[Row], name: str) -> list[Row]:
    """The rows with a name of those in tables."""
    return [row for row in found if label(row) == name]


@dataclass(frozen=True)
class Summary:
    """What some rows of one method come to.

    Attributes:
        runs: how many there are.
        accuracy: mean on test images, 0..1.
        behind: mean difference to the reference on the same task, backbone and seed; NaN without such runs.
        error: standard error of ``behind``, as if each task on each backbone were one measurement, the mean of its
            seeds; NaN for fewer than two.
        share: mean share of the base's bytes, the head apart.
        seconds: mean duration of a run.
    """

    runs: int
    accuracy: float
    behind: float
    error: float
    share: float
    seconds: float


def summarise(some: Sequence[Row], reference: Sequence[Row]) -> Summary | None:
    """Rows of one method against those of another; None if no run of it has an accuracy."""
    done = [row for row in some if row.test is not None]
    if not done:
        return None
    cells = _differences(done, reference)
    return Summary(
        runs=len(done),
        accuracy=mean(row.test for row in done if row.test is not None),
        behind=mean(cells) if cells else nan,
        error=stdev(cells) / sqrt(len(cells)) if len(cells) > 1 else nan,
        share=mean(row.share for row in done),
        seconds=mean(row.seconds for row in done),
    )


def _differences(some: Iterable[Row], reference: Iterable[Row]) -> list[float]:
    """Differences to the reference with the same seed: the mean over the seeds of each task and backbone."""
    other = {run_of(row): row.test for row in reference}
    cells: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in some:
        against = other.get(run_of(row))
        if row.test is not None and against is not None:
            cells[row.task, row.backbone].append(row.test - against)
    return [mean(differences) for differences in cells.values()]


def run_of(row: Row) -> tuple[str, str, int]:
    """What two rows must have in common to be compared: task, backbone and seed."""
    return row.task, row.backbone, row.seed
