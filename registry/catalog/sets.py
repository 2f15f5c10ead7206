"""Sets of tasks with tensors in common: joining one, publishing its object, leaving it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..errors import BusyError, SettingsError
from ..records import TaskSet
from . import bases
from .tables import ObjectRow, SetMemberRow, SetRow, TaskRow


@dataclass(frozen=True)
class PublishedSet:
    """The object that the first task of a set brings."""

    digest: str
    checksum: str
    bytes: int
    params: int


def find(session: Session, base: str, name: str) -> TaskSet | None:
    """The set of this name on a base; None if no task has begun one."""
    row = _row(session, bases.row(session, base).id, name)
    return _record(session, row) if row else None


def require_fit(existing: TaskSet, method: str, arguments: Mapping[str, Any], task: str) -> None:
    """Return if a task that is told this can be in the set.

    Raises:
        SettingsError: if the set is one of another method or width.
        BusyError: if the set's first task, another one, is still in training.
    """
    if (existing.method, dict(existing.arguments)) != (method, dict(arguments)):
        options = ", ".join(f"--{name} {value}" for name, value in existing.arguments.items())
        raise SettingsError(
            f"The set {existing.name!r} uses --method {existing.method} with {options}. Use the same options, or start "
            "another set with --set NAME."
        )
    if not existing.digest and task not in existing.tasks:
        raise BusyError(
            f"The set {existing.name!r} has no projections yet: its first task, {existing.tasks[0]!r}, is in training. "
            "Finish that one first, or start another set with --set NAME."
        )


def join(session: Session, task: TaskRow, joined: TaskSet) -> None:
    """Put a task that is to be trained into a set, which it begins if it is the first one, in a write transaction.

    ``joined`` is the set as the task was prepared for; without a digest if there was none.

    Raises:
        BusyError: if the first task of the set is still in training, or the set has changed since.
        SettingsError: if the set is one of another method or width.
    """
    name, method, arguments = joined.name, joined.method, joined.arguments
    row = _row(session, task.base_id, name)
    if row is None:
        row = SetRow(base_id=task.base_id, name=name, method=method, arguments=dict(arguments), params=0)
        session.add(row)
        session.flush()
    else:
        require_fit(_record(session, row), method, arguments, task.name)
    if (row.object_digest or "") != joined.digest:
        raise BusyError(f"Another process has changed the set {name!r} in the meantime. Try again.")
    session.add(SetMemberRow(task_id=task.id, set_id=row.id))


def publish(session: Session, task: TaskRow, published: PublishedSet) -> None:
    """Record the object of the set that a task began."""
    row = session.scalars(select(SetRow).join(SetMemberRow).where(SetMemberRow.task_id == task.id)).one()
    bases.add_object(session, published.digest, published.bytes, "common", published.checksum)
    row.object_digest, row.params = published.digest, published.params


def leave(session: Session, task: TaskRow) -> None:
    """Take a task out of its set; a set that no other task is in is forgotten. Its object stays until ``gc``."""
    link = session.get(SetMemberRow, task.id)
    if link is None:
        return
    row = session.get_one(SetRow, link.set_id)
    session.delete(link)
    session.flush()
    if not _members(session, row):
        session.delete(row)


def usage(session: Session, base_id: int | None) -> tuple[int, int]:
    """Bytes and values of the objects of all sets on a base, or on all."""
    query = select(func.coalesce(func.sum(ObjectRow.size), 0), func.coalesce(func.sum(SetRow.params), 0))
    query = query.select_from(SetRow).join(ObjectRow, SetRow.object_digest == ObjectRow.digest)
    if base_id is not None:
        query = query.where(SetRow.base_id == base_id)
    size, params = session.execute(query).one()
    return int(size), int(params)


def _record(session: Session, row: SetRow) -> TaskSet:
    return TaskSet(row.name, row.method, row.arguments, row.object_digest or "", tuple(_members(session, row)))


def _row(session: Session, base_id: int, name: str) -> SetRow | None:
    return session.scalar(select(SetRow).where(SetRow.base_id == base_id, SetRow.name == name))


def _members(session: Session, row: SetRow) -> list[str]:
    query = select(TaskRow.name).join(SetMemberRow).where(SetMemberRow.set_id == row.id).order_by(TaskRow.id)
    return list(session.scalars(query))
