"""Tasks and their artifacts: reserving a name, publishing a version, finding, removing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Select, and_, select
from sqlalchemy.orm import Session

from ..errors import BusyError, NameTakenError, NotFoundError
from ..records import InputConfig, Params, Task, TaskLayer
from . import bases, budgets, common
from .common import PublishedCommon
from .tables import ArtifactLayerRow, ArtifactRow, LayerRow, RunRow, TaskRow


@dataclass(frozen=True)
class Published:
    """What ``publish`` writes of an artifact whose object is in the store.

    Attributes:
        metrics: of the stored artifact.
        common: what the task trained for others too, an object of its own.
    """

    digest: str
    bytes: int
    method: str
    encoding: str
    open_layers: int
    gated_layers: int
    params: Params
    classes: Sequence[str]
    input: InputConfig
    metrics: dict[str, float]
    settings: dict[str, Any]
    layers: Sequence[TaskLayer]
    common: PublishedCommon | None = None


def reserve(session: Session, name: str, base: str) -> TaskRow:
    """Take the name for a task that is to be trained.

    Raises:
        NameTakenError: if it is in use; the message says whether that run can be resumed.
        NotFoundError: if there is no such base.
    """
    base_row = bases.row(session, base)
    require_free(session, name)
    task = TaskRow(name=name, base=base_row, state="training", classes=[])
    session.add(task)
    session.flush()
    return task


def require_free(session: Session, name: str) -> None:
    """Raises NameTakenError if there is a task of this name, in training or ready."""
    taken = session.scalar(select(TaskRow).where(TaskRow.name == name))
    if taken is None:
        return
    if taken.state == "ready":
        raise NameTakenError(
            f"There is a task named {name!r} already. Choose another name, or `taps-registry remove {name}`."
        )
    run = session.scalars(select(RunRow).where(RunRow.task_id == taken.id).order_by(RunRow.created.desc())).first()
    state = f"its run is {run.state} after {run.epoch} of {run.settings['epochs']} epochs" if run else "it has no run"
    raise NameTakenError(
        f"The name {name!r} is taken by a task in training: {state}. Continue it with "
        f"`taps-registry add-task {name} --resume`, or give it up with `taps-registry remove {name}`."
    )


def require_room(session: Session, name: str, made: Published) -> None:
    """Return if the task is still in training and its artifact fits every budget.

    Raises:
        BudgetError: saying by how much it does not fit.
        BusyError: if another process has finished the task.
        NotFoundError: if the task was removed in the meantime.
    """
    task = row(session, name)
    if task.state != "training":
        raise BusyError(f"Another process has finished {name!r} in the meantime; its result stands.")
    params, size = (made.common.params, made.common.bytes) if made.common else (0, 0)
    budgets.require_room(session, task.base, made.params.total + params, made.bytes + size, name)


def publish(session: Session, name: str, run: str, made: Published) -> int:
    """Make a task in training ready, in the caller's transaction.

    Returns:
        The version.

    Raises:
        BudgetError, BusyError, NotFoundError: as ``require_room``.
    """
    require_room(session, name, made)
    task = row(session, name)
    if made.common:
        common.publish(session, task, made.common)
    return _add_version(session, task, made, run)


def recode(session: Session, before: Task, made: Published) -> int:
    """Put the same version in another encoding in the place of a task's current one, in the caller's transaction.

    The earlier version's row stays; its object is no longer needed, and goes with the next ``gc``.

    Returns:
        The version.

    Raises:
        BudgetError: saying by how much a larger one does not fit.
        BusyError: if the task has become another in the meantime.
        NotFoundError: if it was removed in the meantime.
    """
    task = row(session, before.name)
    if ready(session, before.name).digest != before.digest:
        raise BusyError(f"The task {before.name!r} has become another in the meantime; it stays as it is. Try again.")
    if made.bytes > before.bytes:
        budgets.require_room(session, task.base, 0, made.bytes - before.bytes, before.name, more=True)
    return _add_version(session, task, made, before.run)


def _add_version(session: Session, task: TaskRow, made: Published, run: str | None) -> int:
    """Make an artifact the task's current version. Returns its number."""
    bases.add_object(session, made.digest, made.bytes, "artifact")
    version = (task.current_version or 0) + 1
    artifact = ArtifactRow(
        task_id=task.id,
        version=version,
        digest=made.digest,
        method=made.method,
        encoding=made.encoding,
        open_layers=made.open_layers,
        gated_layers=made.gated_layers,
        params_weights=made.params.weights,
        params_norms=made.params.norms,
        params_head=made.params.head,
        bytes=made.bytes,
        metrics=made.metrics,
        settings=made.settings,
        run_id=run,
    )
    session.add(artifact)
    session.flush()
    ids = dict(session.execute(select(LayerRow.name, LayerRow.id).where(LayerRow.base_id == task.base_id)).all())
    session.add_all(
        ArtifactLayerRow(
            artifact_id=artifact.id,
            layer_id=ids[layer.name],
            open=layer.open,
            score=layer.score,
            params=layer.params,
            bytes=layer.bytes,
        )
        for layer in made.layers
    )
    task.state, task.current_version = "ready", version
    task.classes, task.input = list(made.classes), asdict(made.input)
    return version


def row(session: Session, name: str) -> TaskRow:
    """The row of a task. Raises NotFoundError, naming what there is."""
    found = session.scalar(select(TaskRow).where(TaskRow.name == name))
    if found is None:
        known = list(session.scalars(select(TaskRow.name)))
        raise NotFoundError(bases.not_found("task", name, known, "add-task"))
    return found


def get(session: Session, name: str) -> Task:
    """A task with its layers. Raises NotFoundError."""
    row(session, name)
    task, artifact = session.execute(_current().where(TaskRow.name == name)).one()
    sets = common.of_tasks(session)
    return record(task, artifact, _layers(session, artifact) if artifact else (), sets.get(task.id, ""))


def ready(session: Session, name: str) -> Task:
    """A task that can be used. Raises NotFoundError if there is none or it is still in training."""
    task = get(session, name)
    if task.state != "ready":
        raise NotFoundError(
            f"The task {name!r} is still in training. Finish it with `taps-registry add-task {name} --resume`."
        )
    return task


def listing(session: Session, base: str | None = None) -> tuple[Task, ...]:
    """Every task, by base and name, without layers. Raises NotFoundError for an unknown base."""
    query = _current().order_by(TaskRow.base_id, TaskRow.name)
    if base is not None:
        query = query.where(TaskRow.base_id == bases.row(session, base).id)
    sets = common.of_tasks(session)
    return tuple(record(task, artifact, (), sets.get(task.id, "")) for task, artifact in session.execute(query))


def remove(session: Session, name: str) -> None:
    """Forget a task and its versions; its objects stay until ``gc``. Raises NotFoundError."""
    task = row(session, name)
    common.leave(session, task)
    session.delete(task)


def current_digests(session: Session) -> set[str]:
    """Digests of the current artifacts of all tasks."""
    joined = and_(ArtifactRow.task_id == TaskRow.id, ArtifactRow.version == TaskRow.current_version)
    return set(session.scalars(select(ArtifactRow.digest).join(TaskRow, joined)))


def _current() -> Select[TaskRow, ArtifactRow | None]:
    """Tasks with their current artifact, or None while they are in training."""
    joined = and_(ArtifactRow.task_id == TaskRow.id, ArtifactRow.version == TaskRow.current_version)
    return select(TaskRow, ArtifactRow).outerjoin(ArtifactRow, joined)


def _layers(session: Session, artifact: ArtifactRow) -> Iterable[TaskLayer]:
    query = (
        select(ArtifactLayerRow, LayerRow)
        .join(LayerRow, ArtifactLayerRow.layer_id == LayerRow.id)
        .where(ArtifactLayerRow.artifact_id == artifact.id)
        .order_by(LayerRow.position)
    )
    return (
        TaskLayer(layer.name, layer.kind, layer.stage, kept.open, kept.score, kept.params, kept.bytes)
        for kept, layer in session.execute(query)
    )


def params(artifact: ArtifactRow) -> Params:
    """The parts of what an artifact stores."""
    return Params(artifact.params_weights, artifact.params_norms, artifact.params_head)


def record(task: TaskRow, artifact: ArtifactRow | None, layers: Iterable[TaskLayer] = (), common_set: str = "") -> Task:
    """What leaves the catalog of a row."""
    if artifact is None:
        return Task(name=task.name, base=task.base.name, state=task.state, created=task.created, common=common_set)
    return Task(
        name=task.name,
        base=task.base.name,
        state=task.state,
        classes=tuple(task.classes),
        version=artifact.version,
        method=artifact.method,
        encoding=artifact.encoding,
        digest=artifact.digest,
        bytes=artifact.bytes,
        open_layers=artifact.open_layers,
        gated_layers=artifact.gated_layers,
        params=params(artifact),
        metrics=artifact.metrics,
        settings=artifact.settings,
        run=artifact.run_id,
        input=InputConfig.from_json(task.input) if task.input else None,
        created=artifact.created,
        common=common_set,
        layers=tuple(layers),
    )
