"""Folders for work in progress, and their locks: what is alive, what can be resumed, what is left over."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .errors import BusyError, StorageError
from .home import Home
from .locks import is_locked, locked
from .store.files import disk_errors

LOCK = "lock"
PATIENCE = 0.2  # seconds: whoever only asks whether a run is alive holds its lock for a moment
HISTORY = "history.json"  # what each epoch of a finished run came to


@contextmanager
def held(home: Home, run: str) -> Iterator[Path]:
    """The run's folder, while no other process can train it; the system drops the lock with the process.

    Raises:
        BusyError: if another process trains it.
    """
    folder = home.runs / run
    with ExitStack() as stack:
        with home.lock():  # else `gc` could take the folder before it is locked
            with disk_errors(f"make {folder}"):
                folder.mkdir(parents=True, exist_ok=True)
            busy = f"The run {run} is being trained by another process right now."
            stack.enter_context(locked(folder / LOCK, PATIENCE, busy))
        yield folder


@contextmanager
def scratch(home: Home) -> Iterator[Path]:
    """A folder for drafts on the registry's own disk; `gc` removes it if this process is killed."""
    name = f"scratch-{uuid.uuid4().hex}"
    try:
        with held(home, name) as folder:
            yield folder
    finally:
        drop(home, name)


def is_alive(home: Home, run: str) -> bool:
    """Whether a process on this machine is training the run."""
    path = home.runs / run / LOCK
    with disk_errors(f"read {path}"):
        if not path.exists():
            return False
    try:
        with locked(path, PATIENCE, ""):
            return False
    except BusyError:
        return True
    except StorageError:
        if path.exists():
            return is_locked(path)  # somebody else's registry, or a disk that is mounted to be read only
        return False  # the run was finished and its folder removed just now


def drop_weights(folder: Path) -> None:
    """Remove what a finished run no longer needs; its history stays. Raises StorageError if the disk refuses."""
    remove_files(weights(folder))


def drop_drafts(folder: Path) -> None:
    """Remove what a killed process was writing. Raises StorageError if the disk refuses."""
    remove_files(drafts(folder))


def weights(folder: Path) -> list[Path]:
    """The files in a run's folder that are only needed to go on training."""
    with disk_errors(f"list {folder}"):
        return sorted([*folder.glob("*.safetensors"), *drafts(folder)])


def drafts(folder: Path) -> list[Path]:
    """Files that were being written: ours, and those that safetensors writes before it renames them to ours."""
    with disk_errors(f"list {folder}"):
        return sorted(folder.glob(".*"))


def remove_files(paths: Iterable[Path]) -> None:
    """Remove files that may be gone already. Raises StorageError if the disk refuses."""
    for path in paths:
        with disk_errors(f"remove {path}"):
            path.unlink(missing_ok=True)  # `gc` may be at it as well


def drop(home: Home, run: str) -> None:
    """Remove a run's folder."""
    shutil.rmtree(home.runs / run, ignore_errors=True)
