"""Holding stored files and catalog against each other. What artifacts say of themselves is right: it is checksummed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

from sqlalchemy import select

from .catalog import bases, damage, layers, tasks
from .catalog.tables import ArtifactRow, ObjectRow, SetMemberRow, SetRow, TaskRow
from .context import Context
from .errors import IntegrityError, StorageError, TapsError
from .records import Base, Problem, Task, TaskLayer


def verify(context: Context, *, deep: bool) -> tuple[Problem, ...]:
    """The problems that stored files and catalog have with each other; empty if there are none.

    ``deep`` also reads every byte, checks digests and checksums, composes every task from its base, and checks the
    catalog's own tables.
    """
    try:
        seen = _look_up(context)
    except (IntegrityError, StorageError):
        in_catalog = tuple(_catalog(context))
        if not in_catalog:
            raise
        return in_catalog  # nothing else can be held against it
    problems = _problems(context, seen, deep)
    if problems:
        problems = _confirmed(context, deep, {problem.subject for problem in problems})
    return (*problems, *(_catalog(context) if deep else ()))


def _confirmed(context: Context, deep: bool, suspects: Collection[str]) -> tuple[Problem, ...]:
    """What is still a problem while nothing is put in or collected: another process may have been at it just now."""
    with suppress(StorageError), context.home.lock():  # a registry that cannot be written is looked at without
        return _problems(context, _look_up(context), deep, suspects)
    return _problems(context, _look_up(context), deep, suspects)


def _catalog(context: Context) -> Iterator[Problem]:
    """What is wrong with the catalog itself."""
    with context.catalog.read() as session:
        connection = session.connection()
        broken = list(damage.pages(connection))  # with any there is no reading the rows
        faults = broken or chain(damage.cells(connection), damage.references(connection))
        yield from (Problem("catalog", what) for what in faults)


@dataclass(frozen=True)
class _Seen:
    """What the catalog says at one moment.

    Attributes:
        objects: digest, bytes and checksum of the objects that must be there.
        earlier: digests of versions that are not current, and whose they are.
        shared: digest of the object that a task has in common with others.
        layers: of each task.
    """

    objects: tuple[ObjectRow, ...]
    earlier: Mapping[str, str]
    bases: tuple[Base, ...]
    tasks: tuple[Task, ...]
    shared: Mapping[str, str]
    layers: Mapping[str, list[TaskLayer]]


def _look_up(context: Context) -> _Seen:
    with context.catalog.read() as session:
        versions = session.execute(select(ArtifactRow.digest, TaskRow.name).join_from(ArtifactRow, TaskRow)).all()
        current = tasks.current_digests(session)
        objects = tuple(session.scalars(select(ObjectRow)))
        session.expunge_all()
        shared = select(TaskRow.name, SetRow.object_digest).join_from(TaskRow, SetMemberRow).join(SetRow)
        return _Seen(
            objects=objects,
            earlier={digest: task for digest, task in versions if digest not in current},
            bases=bases.listing(session),
            tasks=tuple(task for task in tasks.listing(session) if task.state == "ready"),
            shared={task: digest or "" for task, digest in session.execute(shared).all()},
            layers=layers.by_task(session),
        )


def _problems(
    context: Context, seen: _Seen, deep: bool, suspects: Collection[str] | None = None
) -> tuple[Problem, ...]:
    """What is wrong; contents are read if ``deep``, and only those of ``suspects`` if there are any to go by."""

    def asked(subject: str) -> bool:
        return suspects is None or subject in suspects

    broken = dict(_broken(context, seen))
    sound = [row for row in seen.objects if row.digest not in broken and asked(f"object {row.digest}")]
    sound = [row for row in sound if row.digest not in seen.earlier or context.store.has(row.digest)]
    if deep:
        damaged = dict(_damaged(context, [row.digest for row in sound]))
        sound, broken = [row for row in sound if row.digest not in damaged], broken | damaged
    problems = [Problem(f"object {digest}", what) for digest, what in broken.items()]
    problems.extend(_affected(seen, broken))
    digests = {base.name: base.digest for base in seen.bases}
    for task in (task for task in seen.tasks if task.digest not in broken):
        problems.extend(_artifact(context, seen, task, digests.get(task.base, "")))
    if deep:
        chosen = [base for base in seen.bases if base.object not in broken]
        problems.extend(_contents(context, chosen, [t for t in seen.tasks if t.digest not in broken], asked))
        problems.extend(_checksums(context, sound))
    return tuple(problems)


def _broken(context: Context, seen: _Seen) -> Iterator[tuple[str, str]]:
    """Digests of objects that are missing or of another size than they should be, and which of both."""
    for row in seen.objects:
        try:
            size = context.store.size(row.digest)
        except TapsError as error:
            yield row.digest, f"cannot be read: {error}"
            continue
        if size is None and row.digest not in seen.earlier:
            yield row.digest, f"is missing: {context.store.path(row.digest)}"
        elif size not in (None, row.size):
            yield row.digest, f"has {size} bytes instead of {row.size}"


def _affected(seen: _Seen, broken: Mapping[str, str]) -> Iterator[Problem]:
    """The bases and tasks that broken objects belong to."""
    for base in seen.bases:
        if base.object in broken:
            yield Problem(f"base {base.name}", f"its object {base.object} {broken[base.object]}")
    for task in seen.tasks:
        shared = seen.shared.get(task.name, "")
        if task.digest in broken:
            yield Problem(f"task {task.name}", f"its object {task.digest} {broken[task.digest]}")
        if shared in broken:
            yield Problem(f"task {task.name}", f"its shared object {shared} {broken[shared]}")
    for digest in (digest for digest in broken if digest in seen.earlier):
        what = f"the object {digest} of an earlier version {broken[digest]}; `taps-registry gc` removes it"
        yield Problem(f"task {seen.earlier[digest]}", what)


def _artifact(context: Context, seen: _Seen, task: Task, base_digest: str) -> Iterator[Problem]:
    """What the header of an artifact says otherwise than the catalog."""
    from .store.artifact import read_header, stored_params

    subject = f"task {task.name}"
    if task.version is None:
        yield Problem(subject, "the catalog says that it is ready, but has no version of it")
        return
    try:
        header = read_header(context.store.path(task.digest))
        counted = stored_params(header, context.plugins)
        size = context.store.size(task.digest)
    except TapsError as error:
        yield Problem(subject, str(error))
        return
    if header.base != base_digest:
        yield Problem(subject, f"belongs to the base with digest {header.base}, but its base has {base_digest}")
        return
    rows = {layer.name: layer for layer in seen.layers.get(task.name, ())}
    compared: dict[str, tuple[Any, Any]] = {
        "classes": (header.classes, task.classes),
        "preprocessing": (header.config(), task.input),
        "method": (header.method, task.method),
        "encoding": (header.encoding, task.encoding),
        "packages": (dict(header.packages), dict(task.packages)),
        "shared object": (header.common, seen.shared.get(task.name, "")),
        "bytes": (size, task.bytes),
        "open layers": (sum(gate.open for gate in header.layers), task.open_layers),
        "scores": (
            {gate.name: gate.score for gate in header.layers},
            {gate.name: rows[gate.name].score if gate.name in rows else None for gate in header.layers},
        ),
        **{f"{part} parameters": (count, getattr(task.params, part)) for part, count in counted.items()},
    }
    for what, (stored, catalog) in compared.items():
        if stored != catalog:
            yield Problem(subject, f"its {what}: {stored} in the artifact, which is used, but {catalog} in the catalog")


def _damaged(context: Context, digests: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Digests of objects whose bytes have another, whatever their checksums say, and which."""
    from .store.files import sha256

    for digest in digests:
        try:
            actual = sha256(context.store.path(digest))
        except TapsError as error:
            yield digest, f"cannot be read: {error}"
        else:
            if actual != digest:
                yield digest, f"is damaged: its SHA-256 is {actual}"


def _contents(
    context: Context, known: Iterable[Base], ready: Collection[Task], asked: Callable[[str], bool]
) -> Iterator[Problem]:
    """What good objects hold: tensors of bases, tasks to compose from them."""
    from .inference.compose import compose
    from .models.bases import load
    from .store.tensors import digest

    for base in known:
        tasks_on_base = [task for task in ready if task.base == base.name and asked(f"task {task.name}")]
        if not (tasks_on_base or asked(f"base {base.name}")):
            continue
        try:
            loaded = load(context, base)
            actual = digest(loaded.tensors)
        except TapsError as error:
            yield Problem(f"base {base.name}", str(error))
            continue
        if actual != base.digest:
            yield Problem(
                f"base {base.name}", f"its tensors have the digest {actual}, but the catalog says {base.digest}"
            )
        for task in tasks_on_base:
            try:
                compose(loaded, context.store.get(task.digest), context.store.get)
            except TapsError as error:
                yield Problem(f"task {task.name}", str(error))


def _checksums(context: Context, objects: Iterable[ObjectRow]) -> Iterator[Problem]:
    """Good objects whose checksum says otherwise."""
    from .store.files import checksum

    for row in objects:
        with suppress(TapsError):
            if checksum(context.store.path(row.digest)) != row.checksum:
                what = "its BLAKE3 differs from the catalog; the file is intact (its SHA-256 matches)"
                yield Problem(f"object {row.digest}", f"{what}, but loading it is slower")
