"""Locks between processes: files that the system unlocks when their process ends, however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import BusyError, StorageError
from .store.files import disk_errors


@contextmanager
def locked(path: Path, patience: float, busy: str) -> Iterator[None]:
    """Hold the lock of a file, which is made if it is not there, in a folder that is; wait for it so many seconds.

    Raises:
        BusyError: with this text, if another process holds it for longer.
        StorageError: if the folder is gone, or the disk refuses.
    """
    with disk_errors(f"lock {path}"):
        if not path.parent.is_dir():  # filelock would make it
            raise StorageError(f"Cannot lock {path}: the folder {path.parent} does not exist.")
        lock = FileLock(path, timeout=patience, poll_interval=min(0.05, patience / 10))
        try:
            lock.acquire()
        except Timeout as error:
            raise BusyError(busy) from error
        except NotImplementedError as error:  # of filelock, about file systems that have no locks
            raise StorageError(f"Cannot lock {path}: {error}") from error
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file that this one may not write. Raises StorageError."""
    with disk_errors(f"read {path}"), path.open("rb") as file, suppress(ModuleNotFoundError):
        import fcntl  # not on Windows

        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
