"""Budgets: limits on what the tasks of a base, or of the whole registry, may store."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..errors import BudgetError
from ..records import BudgetUse
from . import bases, sets
from .ordering import ByName
from .tables import CURRENT, ArtifactRow, BaseRow, BudgetRow, TaskRow

WHOLE = "*"


def put(session: Session, base: str | None, max_bytes: int | None, max_params: int | None) -> None:
    """Set or replace a budget; None means no limit. Raises NotFoundError for an unknown base."""
    base_id = bases.row(session, base).id if base else None
    row = BudgetRow(scope=base or WHOLE, base_id=base_id, max_bytes=max_bytes, max_params=max_params)
    session.merge(row)


def clear(session: Session, base: str | None) -> bool:
    """Remove a budget; False if there was none. Raises NotFoundError for an unknown base."""
    if base:
        bases.row(session, base)
    row = session.get(BudgetRow, base or WHOLE)
    if row is not None:
        session.delete(row)
    return row is not None


def listing(session: Session) -> tuple[BudgetUse, ...]:
    """Every budget and what is used of it, that of the whole registry first."""
    rows = session.scalars(select(BudgetRow).order_by(ByName(BudgetRow.scope)))
    return tuple(_use(session, row) for row in rows)


def for_base(session: Session, base: BaseRow) -> tuple[BudgetUse, ...]:
    """The budgets that a task on this base counts against."""
    rows = session.scalars(select(BudgetRow).where(BudgetRow.scope.in_([base.name, WHOLE])))
    return tuple(_use(session, row) for row in rows)


def require_room(
    session: Session, base: BaseRow, params: int, size: int, task: str, at_least: bool = False, more: bool = False
) -> None:
    """Return if a task that stores so many values and bytes fits into every budget it counts against.

    In a write transaction what is checked still holds when it is committed. For the message, ``at_least`` says that
    this is the cheapest outcome, before training, ``more`` that it comes on top of what the task takes already.

    Raises:
        BudgetError: saying by how much.
    """
    for use in for_base(session, base):
        for what, used, added, limit in (
            ("bytes", use.used_bytes, size, use.max_bytes),
            ("parameters", use.used_params, params, use.max_params),
        ):
            if limit is not None and used + added > limit:
                scope = f"of the base {use.base!r}" if use.base else "of the registry"
                option = f"--base {use.base} " if use.base else ""
                needs = "needs at least" if at_least else "needs another" if more else "needs"
                over = used + added - limit
                raise BudgetError(
                    f"The budget {scope} is exceeded by {over:,} {what if over > 1 else what.removesuffix('s')}: limit "
                    f"{limit:,}, used {used:,}, and {task!r} {needs} {added:,}. Raise it (`taps-registry budget set "
                    f"{option}--max-{'bytes' if what == 'bytes' else 'params'} {used + added}`), remove a task, or "
                    "store less."
                )


def _use(session: Session, row: BudgetRow) -> BudgetUse:
    stored = ArtifactRow.params_weights + ArtifactRow.params_norms + ArtifactRow.params_head
    query = select(func.coalesce(func.sum(ArtifactRow.bytes), 0), func.coalesce(func.sum(stored), 0))
    query = query.select_from(ArtifactRow).join(TaskRow, CURRENT)
    if row.base_id is not None:
        query = query.where(TaskRow.base_id == row.base_id)
    used_bytes, used_params = session.execute(query).one()
    common_bytes, common_params = sets.usage(session, row.base_id)
    base = row.scope if row.base_id is not None else None
    return BudgetUse(
        base, row.max_bytes, row.max_params, int(used_bytes) + common_bytes, int(used_params) + common_params
    )
