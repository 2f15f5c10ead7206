"""The tables. The one source of truth for the schema: a test holds the migrations and the docs against it.

Every name begins with ``taps_``, so that MLflow, which has a table ``runs`` too, may live in the same database.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, MetaData, String, UniqueConstraint, and_
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from .cells import JsonInput, JsonMetrics, JsonNames, JsonObject, JsonSettings, LargeWhole, Real, UtcDateTime, Whole

PREFIX = "taps_"


def now() -> datetime:
    """The time to put into a row."""
    return datetime.now(UTC)


class Row(DeclarativeBase):
    """A table of ours."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy's own declaration)
        int: Whole,
        float: Real,
        dict[str, Any]: JsonObject,
        list[str]: JsonNames,
        datetime: UtcDateTime,
    }


class RegistryRow(Row):
    """One row: which folder of objects this catalog belongs to."""

    __tablename__ = "taps_registry"

    id: Mapped[str] = mapped_column(String(32), primary_key=True, comment="also in the home folder's registry.json")
    created: Mapped[datetime] = mapped_column(default=now)


class ObjectRow(Row):
    """Files of the object store that something refers to."""

    __tablename__ = "taps_objects"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True, comment="SHA-256 of the file, hexadecimal")
    checksum: Mapped[str] = mapped_column(String(64), comment="BLAKE3 of the file, hexadecimal")
    size: Mapped[int] = mapped_column(LargeWhole, comment="bytes")
    kind: Mapped[str] = mapped_column(String(16), comment="base or artifact")
    created: Mapped[datetime] = mapped_column(default=now)


class BaseRow(Row):
    """Base models."""

    __tablename__ = "taps_base_models"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(128), unique=True)
    model: Mapped[str] = mapped_column(String(256), comment="timm's name of the architecture")
    arguments: Mapped[dict[str, Any]] = mapped_column(comment="of timm.create_model")
    plugin: Mapped[str] = mapped_column(String(128), comment="architecture plugin that laid out the layers")
    plugin_version: Mapped[str] = mapped_column(String(256), comment="package that brought it, and its version")
    digest: Mapped[str] = mapped_column(String(64), comment="SHA-256 over names, shapes, dtypes and bytes of tensors")
    object_digest: Mapped[str] = mapped_column(ForeignKey("taps_objects.digest"), index=True)
    params: Mapped[int] = mapped_column(LargeWhole, comment="values in parameters, classifier included")
    backbone_params: Mapped[int] = mapped_column(LargeWhole, comment="the same without the classifier")
    input: Mapped[dict[str, Any]] = mapped_column(JsonInput, comment="size, mean, std, interpolation, crop")
    created: Mapped[datetime] = mapped_column(default=now)

    object: Mapped[ObjectRow] = relationship(lazy="joined", innerjoin=True)
    layers: Mapped[list[LayerRow]] = relationship(order_by="LayerRow.position", passive_deletes=True)


class LayerRow(Row):
    """Layers of a base in forward order, then its norms."""

    __tablename__ = "taps_layers"
    __table_args__ = (UniqueConstraint("base_id", "name"), UniqueConstraint("base_id", "position"))

    id: Mapped[int] = mapped_column(primary_key=True)
    base_id: Mapped[int] = mapped_column(ForeignKey("taps_base_models.id", ondelete="CASCADE"))
    position: Mapped[int]
    name: Mapped[str] = mapped_column(String(256))
    kind: Mapped[str] = mapped_column(String(32), comment="conv, linear, norm, ...")
    stage: Mapped[str] = mapped_column(String(128))
    params: Mapped[int] = mapped_column(LargeWhole)


class TaskRow(Row):
    """Tasks. A row in state ``training`` reserves the name."""

    __tablename__ = "taps_tasks"

    id: Mapped[int] = mapped_column(primary_key=True)
    base_id: Mapped[int] = mapped_column(ForeignKey("taps_base_models.id"), index=True)
    name: Mapped[str] = mapped_column(String(128), unique=True)
    state: Mapped[str] = mapped_column(String(16), comment="training or ready")
    classes: Mapped[list[str]] = mapped_column(comment="in the order of the head's outputs")
    input: Mapped[dict[str, Any] | None] = mapped_column(JsonInput, comment="size, mean, std, interpolation, crop")
    current_version: Mapped[int | None] = mapped_column(comment="of its artifacts; none while training")
    created: Mapped[datetime] = mapped_column(default=now)

    base: Mapped[BaseRow] = relationship(lazy="joined", innerjoin=True)


class SetRow(Row):
    """Sets of tasks with tensors in common: an object of its own, trained with the first task of the set."""

    __tablename__ = "taps_sets"
    __table_args__ = (UniqueConstraint("base_id", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    base_id: Mapped[int] = mapped_column(ForeignKey("taps_base_models.id"))
    name: Mapped[str] = mapped_column(String(128))
    method: Mapped[str] = mapped_column(String(64))
    arguments: Mapped[dict[str, Any]] = mapped_column(comment="what the method extends a model with")
    object_digest: Mapped[str | None] = mapped_column(
        ForeignKey("taps_objects.digest"), index=True, comment="none while its first task trains"
    )
    params: Mapped[int] = mapped_column(LargeWhole)
    created: Mapped[datetime] = mapped_column(default=now)


class SetMemberRow(Row):
    """Which tasks, finished or in training, are in which of these sets, and need its object."""

    __tablename__ = "taps_set_members"

    task_id: Mapped[int] = mapped_column(
        ForeignKey("taps_tasks.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    set_id: Mapped[int] = mapped_column(ForeignKey("taps_sets.id"), index=True)


class RunRow(Row):
    """Attempts at a task. They outlive the task, so that ``runs`` tells what happened."""

    __tablename__ = "taps_runs"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    task_id: Mapped[int | None] = mapped_column(ForeignKey("taps_tasks.id", ondelete="SET NULL"), index=True)
    task_name: Mapped[str] = mapped_column(String(128))
    base_name: Mapped[str] = mapped_column(String(128))
    state: Mapped[str] = mapped_column(String(16), comment="running, interrupted, failed, over-budget or finished")
    settings: Mapped[dict[str, Any]] = mapped_column(JsonSettings)
    fingerprint: Mapped[str] = mapped_column(String(64), comment="SHA-256 over the data set")
    epoch: Mapped[int] = mapped_column(comment="epochs completed")
    error: Mapped[str] = mapped_column(default="")
    tracker: Mapped[str] = mapped_column(String(64), default="")
    tracker_run: Mapped[str] = mapped_column(String(128), default="", comment="the tracker's own id of the run")
    created: Mapped[datetime] = mapped_column(default=now)
    heartbeat: Mapped[datetime] = mapped_column(default=now)


class ArtifactRow(Row):
    """Versions of tasks. A row never changes; `gc` may have taken the file of one that is not current."""

    __tablename__ = "taps_artifacts"
    __table_args__ = (UniqueConstraint("task_id", "version"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("taps_tasks.id", ondelete="CASCADE"))
    version: Mapped[int]
    digest: Mapped[str] = mapped_column(ForeignKey("taps_objects.digest"), index=True)
    method: Mapped[str] = mapped_column(String(64))
    encoding: Mapped[str] = mapped_column(String(64))
    packages: Mapped[dict[str, Any]] = mapped_column(comment="package and version of its method and of each form")
    open_layers: Mapped[int]
    gated_layers: Mapped[int] = mapped_column(comment="layers the method could have stored")
    params_weights: Mapped[int] = mapped_column(LargeWhole)
    params_norms: Mapped[int] = mapped_column(LargeWhole, comment="running statistics included")
    params_head: Mapped[int] = mapped_column(LargeWhole)
    bytes: Mapped[int] = mapped_column(LargeWhole, comment="of the file")
    metrics: Mapped[dict[str, Any]] = mapped_column(JsonMetrics, comment="measured on the stored artifact")
    settings: Mapped[dict[str, Any]] = mapped_column(JsonSettings)
    run_id: Mapped[str | None] = mapped_column(ForeignKey("taps_runs.id", ondelete="SET NULL"), index=True)
    created: Mapped[datetime] = mapped_column(default=now)


CURRENT = and_(ArtifactRow.task_id == TaskRow.id, ArtifactRow.version == TaskRow.current_version)
"""Joins tasks with the version of theirs that counts; earlier ones are history."""


class ArtifactLayerRow(Row):
    """What an artifact holds of each layer."""

    __tablename__ = "taps_artifact_layers"
    __table_args__ = (Index("ix_taps_artifact_layers_layer_id", "layer_id"),)

    artifact_id: Mapped[int] = mapped_column(
        ForeignKey("taps_artifacts.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    layer_id: Mapped[int] = mapped_column(ForeignKey("taps_layers.id"), primary_key=True, autoincrement=False)
    open: Mapped[bool] = mapped_column(comment="whether the layer is stored")
    score: Mapped[float | None] = mapped_column(comment="none for a method without scores")
    params: Mapped[int] = mapped_column(LargeWhole)
    bytes: Mapped[int] = mapped_column(LargeWhole, comment="of its tensors as encoded")


class BudgetRow(Row):
    """Limits on what the tasks of a base, or of the whole registry, may store."""

    __tablename__ = "taps_budgets"

    scope: Mapped[str] = mapped_column(String(128), primary_key=True, comment="name of the base, or * for all")
    base_id: Mapped[int | None] = mapped_column(ForeignKey("taps_base_models.id", ondelete="CASCADE"), unique=True)
    max_bytes: Mapped[int | None] = mapped_column(LargeWhole)
    max_params: Mapped[int | None] = mapped_column(LargeWhole)
