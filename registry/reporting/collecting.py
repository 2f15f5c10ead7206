"""What a report is made of: bases with their tasks, and what these cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version

from ..catalog import bases, budgets, costs, layers, runs, tasks
from ..context import Context
from ..records import Base, BaseCost, BudgetUse, Run, Task, TaskCost


@dataclass(frozen=True)
class TaskReport:
    """A finished task, with its layers, and the run that trained it; None if the catalog has forgotten it."""

    task: Task
    cost: TaskCost
    run: Run | None


@dataclass(frozen=True)
class BaseReport:
    """A base and its tasks.

    Attributes:
        training: tasks that are not finished, each with its newest run, None if it has none.
        budgets: that the tasks count against: of the base, of the whole registry.
    """

    base: Base
    cost: BaseCost
    tasks: tuple[TaskReport, ...]
    training: tuple[tuple[Task, Run | None], ...]
    budgets: tuple[BudgetUse, ...]


@dataclass(frozen=True)
class Report:
    """A registry, or one base of it, at a moment.

    Attributes:
        made: when, in UTC.
        version: of this package.
        only: the name of the base that was asked for; empty for all of them.
    """

    made: datetime
    version: str
    only: str
    bases: tuple[BaseReport, ...]


def collect(context: Context, base: str | None = None) -> Report:
    """Ask the catalog. Raises NotFoundError for an unknown base."""
    with context.catalog.read() as session:
        report = costs.report(session, base=base)
        chosen = bases.listing(session) if base is None else (bases.get(session, base),)
        uses = budgets.listing(session)
        every = tasks.listing(session, base)
        stored = layers.by_task(session, base)
        known = runs.listing(session)
    attempts = {run.id: run for run in known}
    newest = {run.task: run for run in reversed(known)}
    cost_of = {cost.base: cost for cost in report.bases}
    reports = []
    for base_record in chosen:
        cost = cost_of[base_record.name]
        own = [task for task in every if task.base == base_record.name]
        by_task = {task.task: task for task in cost.tasks}
        reports.append(
            BaseReport(
                base=base_record,
                cost=cost,
                tasks=tuple(
                    TaskReport(
                        replace(task, layers=tuple(stored.get(task.name, ()))),
                        by_task[task.name],
                        attempts.get(task.run or ""),
                    )
                    for task in own
                    if task.name in by_task
                ),
                training=tuple((task, newest.get(task.name)) for task in own if task.state != "ready"),
                budgets=tuple(use for use in uses if use.base in (base_record.name, None)),
            )
        )
    return Report(datetime.now(UTC), version("taps-registry"), base or "", tuple(reports))
