"""Tasks and their artifacts: reserving a name, publishing a version, finding, removing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Row, Select, select
from sqlalchemy.orm import Session

from ..errors import BusyError, NameTakenError, NotFoundError
from ..records import InputConfig, Params, Task, TaskLayer
from . import bases, budgets, layers, sets
from .ordering import ByName
from .sets import PublishedSet
from .tables import CURRENT, ArtifactLayerRow, ArtifactRow, BaseRow, LayerRow, RunRow, SetMemberRow, SetRow, TaskRow

COUNTED = (  # what costs are made of
    *(ArtifactRow.version, ArtifactRow.method, ArtifactRow.digest, ArtifactRow.bytes, ArtifactRow.metrics),
    *(ArtifactRow.open_layers, ArtifactRow.gated_layers),
    *(ArtifactRow.params_weights, ArtifactRow.params_norms, ArtifactRow.params_head),
)


@dataclass(frozen=True)
class Published:
    """What ``publish`` writes of an artifact whose object is in the store.

    Attributes:
        digest: SHA-256 of its file.
        checksum: BLAKE3 of its file.
        metrics: of the stored artifact.
        packages: as in the artifact's header.
        common: what the task trained for others too, an object of its own.
    """

    digest: str
    checksum: str
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
    packages: Mapping[str, str]
    common: PublishedSet | None = None


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
            f"A task named {name!r} already exists. Choose another name, or `taps-registry remove {name}`."
        )
    run = session.scalars(select(RunRow).where(RunRow.task_id == taken.id).order_by(RunRow.created.desc())).first()
    state = f"its run is {run.state} after {run.epoch} of {run.settings['epochs']} epochs" if run else "it has no run"
    raise NameTakenError(
        f"The name {name!r} is taken by a task in training: {state}. Resume it with "
        f"`taps-registry add-task {name} --resume`, or give it up with `taps-registry remove {name}`."
    )


def require_room(session: Session, name: str, published: Published) -> None:
    """Return if the task is still in training and its artifact fits every budget.

    Raises:
        BudgetError: saying by how much it does not fit.
        BusyError: if another process has finished the task.
        NotFoundError: if the task was removed in the meantime.
    """
    task = row(session, name)
    if task.state != "training":
        raise BusyError(f"Another process has finished {name!r} in the meantime; its result is kept.")
    params, size = (published.common.params, published.common.bytes) if published.common else (0, 0)
    budgets.require_room(session, task.base, published.params.total + params, published.bytes + size, name)


def publish(session: Session, name: str, run: str, published: Published) -> int:
    """Make a task in training ready, in the caller's transaction. Returns the version.

    Raises what ``require_room`` does.
    """
    require_room(session, name, published)
    task = row(session, name)
    if published.common:
        sets.publish(session, task, published.common)
    return _add_version(session, task, published, run)


def recode(session: Session, before: Task, published: Published) -> int:
    """Put the same version in another encoding in the place of a task's current one, in the caller's transaction.

    The earlier version's row stays; its object is no longer needed, and goes with the next ``gc``. Returns the version.

    Raises:
        BudgetError: saying by how much a larger one does not fit.
        BusyError: if the task was replaced in the meantime.
        NotFoundError: if it was removed in the meantime.
    """
    task = row(session, before.name)
    if ready(session, before.name).digest != before.digest:
        raise BusyError(f"The task {before.name!r} was replaced in the meantime; nothing was changed. Try again.")
    if published.bytes > before.bytes:
        budgets.require_room(session, task.base, 0, published.bytes - before.bytes, before.name, more=True)
    return _add_version(session, task, published, before.run)


def _add_version(session: Session, task: TaskRow, published: Published, run: str | None) -> int:
    """Make an artifact the task's current version. Returns its number."""
    bases.add_object(session, published.digest, published.bytes, "artifact", published.checksum)
    version = (task.current_version or 0) + 1
    artifact = ArtifactRow(
        task_id=task.id,
        version=version,
        digest=published.digest,
        method=published.method,
        encoding=published.encoding,
        open_layers=published.open_layers,
        gated_layers=published.gated_layers,
        params_weights=published.params.weights,
        params_norms=published.params.norms,
        params_head=published.params.head,
        bytes=published.bytes,
        metrics=published.metrics,
        settings=published.settings,
        packages=dict(published.packages),
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
        for layer in published.layers
    )
    task.state, task.current_version = "ready", version
    task.classes, task.input = list(published.classes), asdict(published.input)
    return version


def row(session: Session, name: str) -> TaskRow:
    """The row of a task. Raises NotFoundError, naming what there is."""
    task = session.scalar(select(TaskRow).where(TaskRow.name == name))
    if task is None:
        known = list(session.scalars(select(TaskRow.name)))
        raise NotFoundError(bases.not_found("task", name, known, "add-task"))
    return task


def get(session: Session, name: str) -> Task:
    """A task with its layers. Raises NotFoundError."""
    row(session, name)
    current = session.execute(_current().where(TaskRow.name == name)).one()
    return record(current, layers.of_artifact(session, current.artifact) if current.version is not None else ())


def ready(session: Session, name: str) -> Task:
    """A task that can be used, with its layers. Raises NotFoundError if there is none or it is still in training."""
    ready_row(session, name)
    return get(session, name)


def ready_row(session: Session, name: str) -> TaskRow:
    """The row of a task that can be used. Raises NotFoundError if there is none or it is still in training."""
    task = row(session, name)
    if task.state != "ready":
        raise NotFoundError(
            f"The task {name!r} is still in training. If that was stopped, `taps-registry add-task {name} --resume` "
            "finishes it."
        )
    return task


def first_metrics(session: Session, name: str) -> Mapping[str, float]:
    """Metrics of the version that training gave a finished task, whatever it has been recoded to since."""
    versions = select(ArtifactRow.metrics).join(TaskRow, ArtifactRow.task_id == TaskRow.id).where(TaskRow.name == name)
    metrics: Mapping[str, float] = session.scalars(versions.order_by(ArtifactRow.version).limit(1)).one()
    return metrics


def listing(session: Session, base: str | None = None) -> tuple[Task, ...]:
    """Every task, by base and name, without layers. Raises NotFoundError for an unknown base."""
    query = _current().order_by(TaskRow.base_id, ByName(TaskRow.name))
    if base is not None:
        query = query.where(TaskRow.base_id == bases.row(session, base).id)
    return tuple(record(current) for current in session.connection().execute(query))


def remove(session: Session, name: str) -> None:
    """Forget a task and its versions; its objects stay until ``gc``. Raises NotFoundError."""
    task = row(session, name)
    sets.leave(session, task)
    session.delete(task)


def current_digests(session: Session) -> set[str]:
    """Digests of the current artifacts of all tasks."""
    return set(session.scalars(select(ArtifactRow.digest).join(TaskRow, CURRENT)))


def _current() -> Select[*tuple[Any, ...]]:
    """Tasks, their base and set, and their current artifact, whose columns are null while they are in training.

    It names columns because rows of the tables would be objects of their own, which take twice as long. Many rows are
    best asked of the connection: the session would look at each of them once more.
    """
    return (
        select(
            TaskRow.name,
            BaseRow.name.label("base"),
            TaskRow.state,
            TaskRow.classes,
            TaskRow.input,
            TaskRow.created.label("reserved"),
            SetRow.name.label("set_name"),
            ArtifactRow.id.label("artifact"),
            *COUNTED,
            ArtifactRow.encoding,
            ArtifactRow.settings,
            ArtifactRow.packages,
            ArtifactRow.run_id,
            ArtifactRow.created,
        )
        .join(BaseRow, TaskRow.base_id == BaseRow.id)
        .outerjoin(ArtifactRow, CURRENT)
        .outerjoin(SetMemberRow, SetMemberRow.task_id == TaskRow.id)
        .outerjoin(SetRow, SetMemberRow.set_id == SetRow.id)
    )


def record(current: Row[*tuple[Any, ...]], layers: tuple[TaskLayer, ...] = ()) -> Task:
    """What leaves the catalog of a row of ``_current``."""
    set_name = current.set_name or ""
    if current.version is None:
        return Task(name=current.name, base=current.base, state=current.state, created=current.reserved, set=set_name)
    return Task(
        name=current.name,
        base=current.base,
        state=current.state,
        classes=tuple(current.classes),
        version=current.version,
        method=current.method,
        encoding=current.encoding,
        digest=current.digest,
        bytes=current.bytes,
        open_layers=current.open_layers,
        gated_layers=current.gated_layers,
        params=Params(current.params_weights, current.params_norms, current.params_head),
        metrics=current.metrics,
        settings=current.settings,
        packages=current.packages,
        run=current.run_id,
        input=InputConfig.from_json(current.input) if current.input else None,
        created=current.created,
        set=set_name,
        layers=layers,
    )
