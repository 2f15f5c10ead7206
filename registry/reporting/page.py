"""The report as HTML. Jinja escapes every text in it; nothing in it is loaded from elsewhere, and it runs no script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..units import number, percent, size
from .bars import LABELS, BudgetRow, CostRow, budget_rows, cost_rows
from .collecting import BaseReport, Report
from .heatmap import HeatMap, heat_map
from .links import UI, TrackedAt, tracked_at
from .scatter import LABELLED, Scatter, accuracy, scatter

GENERATOR = "taps-registry report"  # by which a report knows an earlier one
OPENING = f'<!doctype html>\n<html lang="en">\n<head>\n<meta name="generator" content="{GENERATOR}">\n'


@dataclass(frozen=True)
class BaseView:
    """A base with all its charts.

    Attributes:
        scatter: None if no task was measured.
        tracked: where the run of each task can be looked at, by the task's name.
        many: whether there are so many tasks that nobody wants to press the tab key for each of them.
    """

    report: BaseReport
    heat_map: HeatMap
    costs: tuple[CostRow, ...]
    budgets: tuple[BudgetRow, ...]
    scatter: Scatter | None
    tracked: Mapping[str, TrackedAt]
    many: bool


def render(report: Report) -> str:
    """The whole page."""
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=size, number=number, percent=percent)
    environment.globals.update(accuracy=accuracy, part_labels=LABELS, ui=UI)
    style = environment.get_template("report.css").render()
    body = environment.get_template("report.html").render(
        report=report,
        bases=[_view(base_report) for base_report in report.bases],
        style=Markup(style),  # noqa: S704  (our own file)
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )
    return OPENING + body


def is_report(path: Path) -> bool:
    """Whether ``render`` made this file; nothing else begins as it does."""
    try:
        with path.open("rb") as file:
            return file.read(len(OPENING.encode())) == OPENING.encode()
    except OSError:
        return False


def _view(report: BaseReport) -> BaseView:
    return BaseView(
        report=report,
        heat_map=heat_map(report),
        costs=cost_rows(report),
        budgets=budget_rows(report),
        scatter=scatter(report),
        tracked={task.task.name: tracked_at(task.run) for task in report.tasks},
        many=len(report.tasks) > LABELLED,
    )
