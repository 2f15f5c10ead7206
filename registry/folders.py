"""Folders for work in progress, and their locks: what is alive, what can be resumed, what is left over."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import BusyError
from .home import Home

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
    lock = FileLock(folder / LOCK, timeout=PATIENCE)
    with home.lock():  # else `gc` could take the folder before it is locked
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise BusyError(f"The run {run} is being trained by another process right now.") from error
    try:
        yield folder
    finally:
        lock.release()


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
    if not (home.runs / run / LOCK).exists():
        return False
    try:
        with FileLock(home.runs / run / LOCK, timeout=PATIENCE, poll_interval=PATIENCE / 10):
            return False
    except Timeout:
        return True


def drop_weights(folder: Path) -> None:
    """Remove what a finished run no longer needs; its history stays."""
    for file in (*folder.glob("*.safetensors"), *folder.glob(".*.part")):
        file.unlink(missing_ok=True)  # `gc` may be at it as well


def drop(home: Home, run: str) -> None:
    """Remove a run's folder."""
    shutil.rmtree(home.runs / run, ignore_errors=True)
