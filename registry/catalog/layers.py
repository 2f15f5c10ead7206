"""What artifacts hold of each layer, for many tasks in one query."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..records import TaskLayer
from . import bases
from .tables import CURRENT, ArtifactLayerRow, ArtifactRow, LayerRow, TaskRow


def by_task(session: Session, base: str | None = None) -> dict[str, list[TaskLayer]]:
    """The layers, in forward order, of every finished task, or of those on one base, by the task's name.

    Raises NotFoundError for an unknown base.
    """
    kept = ArtifactLayerRow
    query = (
        select(
            TaskRow.name, LayerRow.name, LayerRow.kind, LayerRow.stage, kept.open, kept.score, kept.params, kept.bytes
        )
        .join_from(
            TaskRow,
            ArtifactRow,
            CURRENT,
        )
        .join(kept, kept.artifact_id == ArtifactRow.id)
        .join(LayerRow, kept.layer_id == LayerRow.id)
        .order_by(TaskRow.id, LayerRow.position)
    )
    if base is not None:
        query = query.where(TaskRow.base_id == bases.row(session, base).id)
    found: dict[str, list[TaskLayer]] = {}
    for task, name, kind, stage, stored, score, params, size in session.execute(query):
        found.setdefault(task, []).append(TaskLayer(name, kind, stage, stored, score, params, size))
    return found
