"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed into it."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from blake3 import blake3

from ..errors import StorageError

CHUNK = 4 * 2**20  # bytes hashed at a time; smaller ones wait too often for Python, which is building a model beside


@contextmanager
def disk_errors(action: str) -> Iterator[None]:
    """Turn an OSError of the block into a StorageError that says ``Cannot ACTION: No space left on device.``"""
    try:
        yield
    except OSError as error:
        raise StorageError(f"Cannot {action}: {error.strerror or error}.") from error


@contextmanager
def in_place(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; when the block ends well, that file is flushed and takes its place.

    The file has the permissions of the one it replaces, else those that the process gives new files (its umask).

    Raises:
        StorageError: if the disk refuses. ``path`` is then as it was, or whole and new but perhaps not yet safe from a
            power cut; the message says which.
    """
    path = Path(os.path.realpath(path))  # what a link leads to is replaced, not the link
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    outcome = "Nothing was changed."
    try:
        if path.exists() and not path.is_file():
            raise StorageError(f"Cannot write {path}: it is there, and is not a file.")
        draft.touch()
        mode = (path if path.exists() else draft).stat().st_mode
        yield draft
        draft.chmod(stat.S_IMODE(mode))  # safetensors makes files that only their owner can read
        flush(draft)
        draft.replace(path)
        outcome = "It was written, but may be lost in a power failure."
        flush(path.parent)
    except OSError as error:
        raise StorageError(f"Cannot write {path}: {error.strerror or error}. {outcome}") from error
    finally:
        with suppress(OSError):
            draft.unlink()


def file_size(path: Path) -> int:
    """Bytes of a file. Raises StorageError if it is not there or the disk refuses."""
    with disk_errors(f"read {path}"):
        return path.stat().st_size


def make_folder(path: Path) -> None:
    """Make a folder whose name is safe on the disk. Raises StorageError if the disk refuses."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        flush(path.parent)
    except OSError as error:
        raise StorageError(f"Cannot make the folder {path}: {error.strerror or error}. Nothing was changed.") from error


def write_file(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, whole or not at all. Raises StorageError if the disk refuses."""
    with in_place(path) as draft:
        draft.write_bytes(data)


def flush(path: Path) -> None:
    """Wait until the file, or the folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal. Raises StorageError if the disk refuses to read it."""
    return _hashed(path, hashlib.sha256())


def checksum(path: Path) -> str:
    """BLAKE3 of a file's bytes, hexadecimal: several times as fast. Raises StorageError as ``sha256`` does."""
    return _hashed(path, blake3())


def _hashed(path: Path, whole: Any) -> str:
    chunk = memoryview(bytearray(CHUNK))
    # read, not mapped: the disk's refusal would be a signal there
    with disk_errors(f"read {path}"), path.open("rb", buffering=0) as file:
        while size := file.readinto(chunk):
            whole.update(chunk[:size])
    digest: str = whole.hexdigest()
    return digest
