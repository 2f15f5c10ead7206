"""Keeping catalog and bytes together: what nothing refers to any more, and what is not as it should be."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from .catalog import bases, tasks
from .catalog.tables import ArtifactRow, BaseRow, CommonRow, CommonTaskRow, ObjectRow, RunRow, TaskRow
from .context import Context
from .errors import TapsError
from .folders import is_alive
from .records import Collected, Problem


def collect(context: Context, *, dry_run: bool) -> Collected:
    """Remove what nobody needs: objects, drafts that a crash left, folders of runs that no task waits for.

    Of a task's versions only the current one is needed: the files of earlier ones go, what the catalog says of them
    stays.

    Args:
        context: of the registry.
        dry_run: only say what would be removed.
    """
    removed: list[str] = []
    size = 0
    with context.home.lock(), context.catalog.write() as session:
        used = tasks.current_digests(session)
        used.update(session.scalars(select(BaseRow.object_digest)), session.scalars(select(CommonRow.object_digest)))
        named = used.union(session.scalars(select(ArtifactRow.digest)))
        waiting = set(session.scalars(select(RunRow.id).join(TaskRow).where(TaskRow.state == "training")))
        kept = set(session.scalars(select(RunRow.id).where(RunRow.task_id.is_not(None))))
        for stored in context.store:
            if stored.digest not in used:
                removed.append(f"object {stored.digest}")
                size += stored.size
                if not dry_run:
                    context.store.path(stored.digest).unlink()
        for row in session.scalars(select(ObjectRow)):
            if row.digest not in named and not dry_run:
                session.delete(row)
        leftovers = [*context.store.leftovers(), *_leftover_runs(context, waiting, kept)]
        for path in leftovers:
            if path.is_dir() and is_alive(context.home, path.name):
                continue
            removed.append(str(path.relative_to(context.home.root)))
            size += _size(path)
            if not dry_run:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return Collected(tuple(removed), size, dry_run)


def _leftover_runs(context: Context, waiting: set[str], kept: set[str]) -> Iterator[Path]:
    """Folders of runs whose task is gone, and weights in those of finished ones."""
    for folder in sorted(context.home.runs.iterdir()):
        if folder.name not in kept:
            yield folder
        elif folder.name not in waiting:
            yield from sorted([*folder.glob("*.safetensors"), *folder.glob(".*.part")])


def _size(path: Path) -> int:
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )


def verify(context: Context, *, deep: bool) -> tuple[Problem, ...]:
    """Check stored files against the catalog.

    Args:
        context: of the registry.
        deep: also read every byte, check digests and checksums, and compose every task from its base.

    Returns:
        The problems; empty if there are none.
    """
    with context.catalog.read() as session:
        earlier = _earlier(session)
        objects = _kept(context, session, earlier)
        known = bases.listing(session)
        ready = [task for task in tasks.listing(session) if task.state == "ready"]
        query = select(TaskRow.name, CommonRow.object_digest).join_from(TaskRow, CommonTaskRow).join(CommonRow)
        shared = dict(session.execute(query).all())
    broken = dict(_broken(context, objects))
    if deep:
        broken |= _damaged(context, [row for row in objects if row.digest not in broken])
    problems = [Problem(f"object {digest}", what) for digest, what in broken.items()]
    digests = {base.name: base.digest for base in known}
    for base in known:
        if base.object in broken:
            problems.append(Problem(f"base {base.name}", f"its object {base.object} {broken[base.object]}"))
    for task in ready:
        if task.digest in broken:
            problems.append(Problem(f"task {task.name}", f"its object {task.digest} {broken[task.digest]}"))
        else:
            problems.extend(_artifact(context, task.name, task.digest, digests[task.base]))
        if shared.get(task.name) in broken:
            digest = str(shared[task.name])
            problems.append(Problem(f"task {task.name}", f"its shared object {digest} {broken[digest]}"))
    for digest in (digest for digest in broken if digest in earlier):
        what = f"the object {digest} of an earlier version {broken[digest]}; `taps-registry gc` removes it"
        problems.append(Problem(f"task {earlier[digest]}", what))
    if deep:
        problems.extend(_contents(context, broken))
        problems.extend(_checksums(context, [row for row in objects if row.digest not in broken]))
    return tuple(problems)


def _earlier(session: Session) -> dict[str, str]:
    """Digests of versions that are not current, and whose they are."""
    found = session.execute(select(ArtifactRow.digest, TaskRow.name).join_from(ArtifactRow, TaskRow)).all()
    current = tasks.current_digests(session)
    return {digest: task for digest, task in found if digest not in current}


def _kept(context: Context, session: Session, earlier: Collection[str]) -> list[Row[str, int, str | None]]:
    """Digests, sizes and checksums of the objects that are to be there; those of earlier versions may be gone."""
    rows = session.execute(select(ObjectRow.digest, ObjectRow.size, ObjectRow.checksum)).all()
    return [row for row in rows if row.digest not in earlier or context.store.path(row.digest).exists()]


def _broken(context: Context, objects: Sequence[Row[str, int, str | None]]) -> Iterator[tuple[str, str]]:
    """Digests of objects that are missing or of another size than they should be, and which of both."""
    for digest, size, _ in objects:
        path = context.store.path(digest)
        if not path.exists():
            yield digest, f"is missing: {path}"
        elif path.stat().st_size != size:
            yield digest, f"has {path.stat().st_size} bytes instead of {size}"


def _artifact(context: Context, task: str, digest: str, base_digest: str) -> Iterator[Problem]:
    from .store.artifact import read_header

    try:
        header = read_header(context.store.path(digest))
    except TapsError as error:
        yield Problem(f"task {task}", str(error))
        return
    if header.base != base_digest:
        yield Problem(f"task {task}", f"belongs to the base with digest {header.base}, but its base has {base_digest}")


def _damaged(context: Context, objects: Sequence[Row[str, int, str | None]]) -> Iterator[tuple[str, str]]:
    """Digests of objects whose bytes have another, whatever their checksums say, and which."""
    from .store.files import sha256

    for digest, _, _ in objects:
        try:
            found = sha256(context.store.path(digest))
        except TapsError as error:
            yield digest, f"cannot be read: {error}"
        else:
            if found != digest:
                yield digest, f"is damaged: its SHA-256 is {found}"


def _contents(context: Context, broken: Collection[str]) -> Iterator[Problem]:
    """What good objects hold: tensors of bases, tasks to compose from them."""
    from .inference.compose import compose
    from .models.bases import load
    from .store.tensors import digest

    with context.catalog.read() as session:
        known = bases.listing(session)
        ready = [task for task in tasks.listing(session) if task.state == "ready"]
    for base in (base for base in known if base.object not in broken):
        try:
            loaded = load(context, base)
        except TapsError as error:
            yield Problem(f"base {base.name}", str(error))
            continue
        found = digest(loaded.tensors)
        if found != base.digest:
            yield Problem(
                f"base {base.name}", f"its tensors have the digest {found}, but the catalog says {base.digest}"
            )
        for task in (task for task in ready if task.base == base.name and task.digest not in broken):
            try:
                compose(loaded, context.store.get(task.digest), context.store.get)
            except TapsError as error:
                yield Problem(f"task {task.name}", str(error))


def _checksums(context: Context, objects: Sequence[Row[str, int, str | None]]) -> Iterator[Problem]:
    """Good objects whose checksum says otherwise."""
    from .store.files import checksum

    for digest, _, known in objects:
        path = context.store.path(digest)
        with suppress(TapsError):
            if known is not None and checksum(path) != known:
                what = "its BLAKE3 differs from the catalog; the file is intact (its SHA-256 matches)"
                yield Problem(f"object {digest}", f"{what}, but loading it is slower")
