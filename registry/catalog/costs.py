"""What each task costs, and all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, case, func, select
from sqlalchemy.orm import Session

from ..errors import SettingsError
from ..records import BaseCost, BudgetUse, CostReport, LayerCost, Params, SetCost, TaskCost, Total
from . import bases, budgets, tasks
from .ordering import ByName
from .tables import CURRENT, ArtifactLayerRow, ArtifactRow, BaseRow, LayerRow, ObjectRow, SetMemberRow, SetRow, TaskRow

BY = ("task", "layer", "kind")


def report(session: Session, names: Sequence[str] = (), base: str | None = None, by: str = "task") -> CostReport:
    """What tasks cost: those of these names, or all; bases without any of these are left out.

    With ``by``, what they store of each ``layer`` or ``kind`` is added.

    Raises:
        NotFoundError: for a name that does not exist, or a task that is still in training.
        SettingsError: for another ``by``, or a task on another base.
    """
    if by not in BY:
        raise SettingsError(f"Costs can be broken down by {', '.join(BY)}, not by {by!r}.")
    for name in names:
        on = tasks.ready_row(session, name).base.name
        if base not in (None, on):
            raise SettingsError(f"The task {name!r} is on the base {on!r}, not on {base!r}.")
    chosen = (
        [bases.row(session, base)] if base else list(session.scalars(select(BaseRow).order_by(ByName(BaseRow.name))))
    )
    uses = {use.base: use for use in budgets.listing(session)}
    costs = []
    for row in chosen:
        artifacts = _artifacts(session, row, names)
        if artifacts or not names:
            grouped = _by_layer(session, row, names, by) if by != "task" else ()
            shared = _sets(session, row, names)
            costs.append(_base_cost(row, artifacts, shared, grouped, uses.get(row.name)))
    return CostReport(tuple(costs), uses.get(None))


def _artifacts(session: Session, base: BaseRow, names: Sequence[str]) -> Sequence[Row[*tuple[Any, ...]]]:
    """Current artifacts by name of their task: plain columns, since rows of the tables take three times as long."""
    query = select(TaskRow.name, *tasks.COUNTED).join(ArtifactRow, CURRENT)
    query = query.where(TaskRow.base_id == base.id).order_by(ByName(TaskRow.name))
    if names:
        query = query.where(TaskRow.name.in_(names))
    return session.connection().execute(query).all()


def _sets(session: Session, base: BaseRow, names: Sequence[str]) -> tuple[SetCost, ...]:
    """The sets that these tasks are in, each with all its finished tasks."""
    query = (
        select(SetRow, ObjectRow.size, TaskRow.name)
        .join(ObjectRow, SetRow.object_digest == ObjectRow.digest)
        .join(SetMemberRow, SetMemberRow.set_id == SetRow.id)
        .join(TaskRow, SetMemberRow.task_id == TaskRow.id)
        .where(SetRow.base_id == base.id, TaskRow.state == "ready")
        .order_by(ByName(SetRow.name, TaskRow.name))
    )
    members: dict[int, list[str]] = {}
    rows: dict[int, tuple[SetRow, int]] = {}
    for row, size, task in session.execute(query):
        rows[row.id] = (row, size)
        members.setdefault(row.id, []).append(task)
    return tuple(
        SetCost(row.name, row.method, str(row.object_digest), row.params, size, tuple(members[row.id]))
        for row, size in rows.values()
        if not names or set(names) & set(members[row.id])
    )


def _base_cost(
    base: BaseRow,
    artifacts: Sequence[Row[*tuple[Any, ...]]],
    sets: tuple[SetCost, ...],
    by: tuple[LayerCost, ...],
    use: BudgetUse | None,
) -> BaseCost:
    set_of = {task: artifacts.name for artifacts in sets for task in artifacts.tasks}
    costs = tuple(_task_cost(row, base, set_of.get(row.name, "")) for row in artifacts)
    files = {row.digest: row.bytes for row in artifacts}
    stored = base.object.size + sum(files.values()) + sum({shared.digest: shared.bytes for shared in sets}.values())
    total = Total(
        params=base.params + sum(cost.params.total for cost in costs) + sum(shared.params for shared in sets),
        bytes=stored,
        multiple=1
        + sum(cost.share_of_base for cost in costs)
        + sum(shared.params for shared in sets) / base.backbone_params,
        multiple_of_bytes=stored / base.object.size,
        multiple_if_copied=1.0 + len(costs),
    )
    return BaseCost(base.name, base.params, base.object.size, costs, total, use, by, sets)


def _task_cost(row: Row[*tuple[Any, ...]], base: BaseRow, set_name: str) -> TaskCost:
    return TaskCost(
        task=row.name,
        version=row.version,
        method=row.method,
        open_layers=row.open_layers,
        layers=row.gated_layers,
        params=Params(row.params_weights, row.params_norms, row.params_head),
        bytes=row.bytes,
        share_of_base=(row.params_weights + row.params_norms) / base.backbone_params,
        share_of_bytes=row.bytes / base.object.size,
        metrics=row.metrics,
        set=set_name,
    )


def _by_layer(session: Session, base: BaseRow, names: Sequence[str], by: str) -> tuple[LayerCost, ...]:
    """What the tasks store of each layer, in forward order, or of each kind, by name."""
    stored = (
        select(
            ArtifactLayerRow.layer_id,
            func.sum(case((ArtifactLayerRow.open, 1), else_=0)).label("open"),
            func.sum(ArtifactLayerRow.params).label("params"),
            func.sum(ArtifactLayerRow.bytes).label("bytes"),
        )
        .join(ArtifactRow, ArtifactLayerRow.artifact_id == ArtifactRow.id)
        .join(TaskRow, CURRENT)
        .where(TaskRow.base_id == base.id, *([TaskRow.name.in_(names)] if names else []))
        .group_by(ArtifactLayerRow.layer_id)
        .subquery()
    )
    query = (
        select(LayerRow, stored.c.open, stored.c.params, stored.c.bytes)
        .outerjoin(stored, stored.c.layer_id == LayerRow.id)
        .where(LayerRow.base_id == base.id)
        .order_by(LayerRow.position)
    )
    rows = [
        LayerCost(layer.name, layer.kind, 1, int(opened or 0), layer.params, int(params or 0), int(size or 0))
        for layer, opened, params, size in session.execute(query)
    ]
    if by == "layer":
        return tuple(rows)
    kinds = {kind: [row for row in rows if row.kind == kind] for kind in sorted({row.kind for row in rows})}
    return tuple(
        LayerCost(
            name=kind,
            kind=kind,
            layers=len(group),
            open=sum(row.open for row in group),
            params=sum(row.params for row in group),
            task_params=sum(row.task_params for row in group),
            task_bytes=sum(row.task_bytes for row in group),
        )
        for kind, group in kinds.items()
    )
