"""What artifacts hold of each layer, for many tasks in one query."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from ..records import TaskLayer
from . import bases
from .tables import CURRENT, ArtifactLayerRow, ArtifactRow, LayerRow, TaskRow


def of_artifact(session: Session, artifact: int) -> tuple[TaskLayer, ...]:
    """The layers of one artifact, by its row's id, in forward order."""
    kept = _kept().where(ArtifactLayerRow.artifact_id == artifact).order_by(LayerRow.position)
    return tuple(TaskLayer(*layer) for layer in session.execute(kept))


def by_task(session: Session, base: str | None = None) -> dict[str, list[TaskLayer]]:
    """The layers, in forward order, of every finished task, or of those on one base, by the task's name.

    Raises NotFoundError for an unknown base.
    """
    query = _kept().add_columns(TaskRow.name).join(ArtifactRow).join(TaskRow, CURRENT)
    query = query.order_by(TaskRow.id, LayerRow.position)
    if base is not None:
        query = query.where(TaskRow.base_id == bases.row(session, base).id)
    layers: dict[str, list[TaskLayer]] = {}
    for *layer, task in session.execute(query):
        layers.setdefault(task, []).append(TaskLayer(*layer))
    return layers


def _kept() -> Select[*tuple[Any, ...]]:
    """The fields of a ``TaskLayer``."""
    kept = ArtifactLayerRow
    columns = (LayerRow.name, LayerRow.kind, LayerRow.stage, kept.open, kept.score, kept.params, kept.bytes)
    return select(*columns).join_from(kept, LayerRow)
