"""Removing what nothing refers to any more."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from .catalog import tasks
from .catalog.tables import ArtifactRow, BaseRow, ObjectRow, RunRow, SetRow, TaskRow
from .context import Context
from .folders import is_alive, remove_files, weights
from .records import Collected
from .store.files import disk_errors


def collect(context: Context, *, dry_run: bool) -> Collected:
    """Remove what nobody needs: objects, drafts that a crash left, folders of runs that no task waits for.

    Of a task's versions only the current one is needed: the files of earlier ones go, what the catalog says of them
    stays. The catalog forgets objects before their files go, so that it never refers to one that is not there; both
    under the registry's lock, so that no file is taken that another process is about to refer to.

    Raises StorageError if the disk refuses; another ``gc`` goes on.
    """
    removed: list[str] = []
    size = 0
    with nullcontext() if dry_run else context.home.lock():
        transaction = context.catalog.read() if dry_run else context.catalog.write()
        with transaction as session:
            needed = _needed(session)
            if not dry_run:
                for row in session.scalars(select(ObjectRow)):
                    if row.digest not in needed.named:
                        session.delete(row)
        for stored in context.store:
            if stored.digest not in needed.objects:
                removed.append(f"object {stored.digest}")
                size += stored.size
                if not dry_run:
                    remove_files([context.store.path(stored.digest)])
        for path in (*context.store.leftovers(), *_leftover_runs(context, needed)):
            if path.is_dir() and is_alive(context.home, path.name):
                continue
            removed.append(str(path.relative_to(context.home.root)))
            size += _size(path)
            if not dry_run:
                _remove(path)
    return Collected(tuple(removed), size, dry_run)


@dataclass(frozen=True)
class _Needed:
    """What the catalog refers to.

    Attributes:
        objects: digests of files that bases and tasks need.
        named: those, and of versions that are history.
        waiting: runs that can be resumed.
        kept: runs of tasks that are there.
    """

    objects: frozenset[str]
    named: frozenset[str]
    waiting: frozenset[str]
    kept: frozenset[str]


def _needed(session: Session) -> _Needed:
    used = tasks.current_digests(session)
    used.update(session.scalars(select(BaseRow.object_digest)))
    used.update(digest for digest in session.scalars(select(SetRow.object_digest)) if digest)
    waiting = session.scalars(select(RunRow.id).join(TaskRow).where(TaskRow.state == "training"))
    kept = session.scalars(select(RunRow.id).where(RunRow.task_id.is_not(None)))
    named = used.union(session.scalars(select(ArtifactRow.digest)))
    return _Needed(frozenset(used), frozenset(named), frozenset(waiting), frozenset(kept))


def _leftover_runs(context: Context, needed: _Needed) -> Iterator[Path]:
    """Folders of runs whose task is gone, and weights in those of finished ones."""
    with disk_errors(f"list {context.home.runs}"):
        folders = sorted(context.home.runs.iterdir())
    for folder in folders:
        if folder.name not in needed.kept:
            yield folder
        elif folder.name not in needed.waiting:
            yield from weights(folder)


def _remove(path: Path) -> None:
    """Remove a file or folder that may be gone already."""
    if path.is_dir():
        with disk_errors(f"remove {path}"):
            try:
                shutil.rmtree(path)
            except FileNotFoundError:  # the run ended just now, and removed its folder itself
                shutil.rmtree(path, ignore_errors=True)
    else:
        remove_files([path])


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; of those that are still there."""
    files = list(path.rglob("*")) if path.is_dir() else [path]
    size = 0
    for file in files:
        with suppress(OSError):
            size += file.stat().st_size if file.is_file() else 0
    return size
