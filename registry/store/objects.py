"""The object store: files named by the SHA-256 of their bytes, never changed, removed only by ``gc``."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import IntegrityError
from .files import checksum, disk_errors, in_place, make_folder, sha256

DIGEST = re.compile(r"[0-9a-f]{64}")
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class StoredObject:
    """A file of the store. ``size`` is in bytes."""

    digest: str
    size: int


class ObjectStore:
    """A folder of objects, spread over 256 sub-folders by the first two digits of their names.

    ``checksums`` gives the BLAKE3 on record for a digest, if any; where a file has another, SHA-256 decides.
    """

    def __init__(self, root: Path, checksums: Callable[[str], str | None] = lambda digest: None) -> None:
        self.root = root
        self.checksums = checksums

    def path(self, digest: str) -> Path:
        """Where the object is or would be. Raises IntegrityError for anything but a digest: this becomes a path."""
        if not DIGEST.fullmatch(digest):
            raise IntegrityError(f"{digest!r} is not a SHA-256 digest.")
        return self.root / digest[:2] / f"{digest[2:]}{SUFFIX}"

    def put(self, source: Path) -> StoredObject:
        """Take a copy of a file in under its digest; the caller holds the registry's lock against ``gc``.

        Raises StorageError.
        """
        with disk_errors(f"read {source}"):
            stored = StoredObject(sha256(source), source.stat().st_size)
            target = self.path(stored.digest)
            present = target.exists()
        if not (present and sha256(target) == stored.digest):
            make_folder(target.parent)
            with in_place(target) as draft:
                shutil.copyfile(source, draft)
                self._check(draft, stored.digest)
        return stored

    def get(self, digest: str) -> Path:
        """Path of an object whose bytes have just been checked: by its checksum, or else against its digest.

        Raises IntegrityError if it is not there or damaged.
        """
        path = self.path(digest)
        if not self.has(digest):
            raise IntegrityError(
                f"Object {digest} is missing: {path} does not exist. `taps-registry verify` gives details."
            )
        known = self.checksums(digest)
        if known is None or checksum(path) != known:
            self._check(path, digest)
        return path

    def has(self, digest: str) -> bool:
        """Whether there is a file for the object, whatever is in it. Raises StorageError if the disk refuses."""
        path = self.path(digest)
        with disk_errors(f"read {path}"):
            return path.exists()

    def size(self, digest: str) -> int | None:
        """Bytes of the object's file; None if there is none. Raises StorageError if the disk refuses."""
        path = self.path(digest)
        with disk_errors(f"read {path}"):
            try:
                return path.stat().st_size
            except FileNotFoundError:
                return None

    def __iter__(self) -> Iterator[StoredObject]:
        """Every object there is, by name."""
        with disk_errors(f"list {self.root}"):
            paths = sorted(self.root.glob(f"[0-9a-f][0-9a-f]/*{SUFFIX}"))
        for path in paths:
            digest = path.parent.name + path.name.removesuffix(SUFFIX)
            size = self.size(digest) if DIGEST.fullmatch(digest) else None
            if size is not None:
                yield StoredObject(digest, size)

    def leftovers(self) -> list[Path]:
        """Drafts that a crash left behind: all files whose names begin with a dot."""
        with disk_errors(f"list {self.root}"):
            return sorted(self.root.glob("[0-9a-f][0-9a-f]/.*"))

    @staticmethod
    def _check(path: Path, digest: str) -> None:
        actual = sha256(path)
        if actual != digest:
            raise IntegrityError(f"{path} is damaged: its SHA-256 is {actual}, but its name says {digest}.")
