"""Base models: adding, finding, listing."""

from __future__ import annotations

from dataclasses import asdict
from difflib import get_close_matches

from sqlalchemy import delete, select
from sqlalchemy.orm import Session, selectinload

from ..errors import NameTakenError, NotFoundError, SettingsError
from ..records import Base, InputConfig, LayerInfo
from .ordering import ByName
from .tables import BaseRow, LayerRow, ObjectRow, SetRow, TaskRow


def add(session: Session, base: Base, checksum: str) -> None:
    """Record a base whose object, with this checksum, is in the store.

    Raises NameTakenError if there is one of its name.
    """
    require_free(session, base.name)
    add_object(session, base.object, base.bytes, "base", checksum)
    row = BaseRow(
        name=base.name,
        model=base.model,
        arguments=dict(base.arguments),
        plugin=base.plugin,
        plugin_version=base.plugin_version,
        digest=base.digest,
        object_digest=base.object,
        params=base.params,
        backbone_params=base.backbone_params,
        input=asdict(base.input),
    )
    row.layers = [
        LayerRow(position=position, name=layer.name, kind=layer.kind, stage=layer.stage, params=layer.params)
        for position, layer in enumerate(base.layers)
    ]
    session.add(row)


def remove(session: Session, name: str) -> None:
    """Remove a base that no task is on, with its layers and its budget; its object stays until nothing refers to it.

    Raises:
        NotFoundError: if there is none of this name.
        SettingsError: naming the tasks that need it.
    """
    base = row(session, name)
    users = session.scalars(select(TaskRow.name).where(TaskRow.base_id == base.id).order_by(ByName(TaskRow.name))).all()
    if users:
        shown = ", ".join(users[:10]) + (f" and {len(users) - 10} more" if len(users) > 10 else "")
        raise SettingsError(
            f"The base {name!r} is needed by {shown}. Remove these tasks first: taps-registry remove TASK"
        )
    session.execute(delete(SetRow).where(SetRow.base_id == base.id))
    session.delete(base)


def require_free(session: Session, name: str) -> None:
    """Raises NameTakenError if there is a base of this name."""
    if session.scalar(select(BaseRow.id).where(BaseRow.name == name)) is not None:
        raise NameTakenError(
            f"A base named {name!r} already exists. Choose another name; `taps-registry bases` lists them."
        )


def add_object(session: Session, digest: str, size: int, kind: str, checksum: str) -> None:
    """Record an object, which may be recorded already."""
    session.merge(ObjectRow(digest=digest, size=size, kind=kind, checksum=checksum))
    session.flush()


def checksum(session: Session, digest: str) -> str | None:
    """The checksum of an object; None if there is no such object."""
    return session.scalar(select(ObjectRow.checksum).where(ObjectRow.digest == digest))


def row(session: Session, name: str) -> BaseRow:
    """The row of a base. Raises NotFoundError, naming what there is."""
    base = session.scalar(select(BaseRow).where(BaseRow.name == name))
    if base is None:
        raise NotFoundError(not_found("base", name, list(session.scalars(select(BaseRow.name))), "add-base"))
    return base


def get(session: Session, name: str) -> Base:
    """A base with its layers. Raises NotFoundError."""
    return record(row(session, name), with_layers=True)


def listing(session: Session) -> tuple[Base, ...]:
    """Every base with its layers, by name."""
    rows = session.scalars(select(BaseRow).options(selectinload(BaseRow.layers)).order_by(ByName(BaseRow.name)))
    return tuple(record(base, with_layers=True) for base in rows)


def record(row: BaseRow, *, with_layers: bool) -> Base:
    """What leaves the catalog of a row."""
    layers = row.layers if with_layers else []
    return Base(
        name=row.name,
        model=row.model,
        arguments=row.arguments,
        plugin=row.plugin,
        plugin_version=row.plugin_version,
        digest=row.digest,
        object=row.object_digest,
        params=row.params,
        backbone_params=row.backbone_params,
        bytes=row.object.size,
        input=InputConfig.from_json(row.input),
        created=row.created,
        layers=tuple(LayerInfo(layer.name, layer.kind, layer.stage, layer.params) for layer in layers),
    )


def not_found(what: str, name: str, known: list[str], command: str) -> str:
    """What was looked for, what there is, and what to type."""
    if not known:
        return f"There is no {what} {name!r}; this registry has none yet. Type: taps-registry {command} --help"
    close = get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    shown = ", ".join(sorted(known)[:10]) + (", ..." if len(known) > 10 else "")
    return f"There is no {what} {name!r}.{hint} There are: {shown}"
