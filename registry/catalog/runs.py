"""Runs: attempts at a task, what became of them, and how to find the one to resume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..errors import NotFoundError
from ..records import Run
from .tables import RunRow, TaskRow, now


def begin(
    session: Session, run: str, task: TaskRow, settings: Mapping[str, Any], fingerprint: str, tracker: str
) -> None:
    """Record a run that starts now."""
    session.add(
        RunRow(
            id=run,
            task_id=task.id,
            task_name=task.name,
            base_name=task.base.name,
            state="running",
            settings=dict(settings),
            fingerprint=fingerprint,
            epoch=0,
            tracker=tracker,
        )
    )


def update(session: Session, run: str, **values: Any) -> None:
    """Set columns of a run, and its heartbeat."""
    row = session.get_one(RunRow, run)
    for name, value in {**values, "heartbeat": now()}.items():
        setattr(row, name, value)


def of_task(session: Session, task: str) -> Run | None:
    """The newest unfinished run of a task in training; None if the task is not in training."""
    query = (
        select(RunRow)
        .join(TaskRow, RunRow.task_id == TaskRow.id)
        .where(TaskRow.name == task, TaskRow.state == "training")
        .order_by(RunRow.created.desc())
    )
    row = session.scalars(query).first()
    return record(row) if row is not None else None


def get(session: Session, run: str) -> Run:
    """A run by its id. Raises NotFoundError."""
    row = session.get(RunRow, run)
    if row is None:
        raise NotFoundError(f"There is no run {run!r}. `taps-registry runs` lists them.")
    return record(row)


def listing(session: Session, task: str | None = None) -> tuple[Run, ...]:
    """Every run, newest first; those of one task if it is named."""
    query = select(RunRow).order_by(RunRow.created.desc(), RunRow.id)
    if task is not None:
        query = query.where(RunRow.task_name == task)
    return tuple(record(row) for row in session.scalars(query))


def record(row: RunRow) -> Run:
    """What leaves the catalog of a row."""
    return Run(
        id=row.id,
        task=row.task_name,
        base=row.base_name,
        state=row.state,
        method=row.settings.get("method", ""),
        seed=row.settings.get("seed", 0),
        epoch=row.epoch,
        epochs=row.settings.get("epochs", 0),
        error=row.error,
        tracker=row.tracker,
        tracker_run=row.tracker_run,
        fingerprint=row.fingerprint,
        settings=row.settings,
        created=row.created,
        heartbeat=row.heartbeat,
    )
