"""Images kept in memory once they are decoded, for this process and the loader processes that it forks.

Without it every epoch decodes every image again. What is kept are the values that would be computed again, so results
do not depend on it; what does not fit is computed each time.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from math import prod
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy
import psutil
from numpy.typing import NDArray

SHARE = 0.25  # of the memory that is free when training begins
FIELDS = 4  # of an entry: where it begins, plus one, so that 0 is for none; and its shape
GROUPS = Path("/sys/fs/cgroup")

Kept = NDArray[Any]


class Cache:
    """Arrays of one type and three dimensions, numbered below ``count``, in a mapping of ``limit`` bytes.

    The mapping is anonymous and shared with forked processes: whichever of them puts an array in, all of them have it.
    Pages that were never written take no memory. A process that is spawned gets a cache that holds nothing.
    """

    def __init__(self, count: int, limit: int, dtype: str) -> None:
        self.count = count
        self.limit = limit
        self.dtype = numpy.dtype(dtype)
        if limit > 0:
            self._room = mmap(-1, limit)
            table = numpy.frombuffer(mmap(-1, 8 * (1 + FIELDS * count)), dtype=numpy.int64)
            self._used = table[:1]
            self._entries = table[1:].reshape(count, FIELDS)
            self._lock = multiprocessing.Lock()

    @property
    def used(self) -> int:
        """Bytes taken."""
        return int(self._used[0]) if self.limit > 0 else 0

    def get(self, number: int) -> Kept | None:
        """A view of an array that cannot be written to, or None if it is not here."""
        if self.limit <= 0 or not self._entries[number, 0]:
            return None
        start, *shape = self._entries[number].tolist()
        cached = self._at(start - 1, shape)
        cached.flags.writeable = False
        return cached

    def put(self, number: int, array: Kept) -> None:
        """Take an array in, if it fits."""
        if self.limit <= 0 or array.dtype != self.dtype or array.ndim != FIELDS - 1:
            return
        with self._lock:
            start = self.used
            if start + array.nbytes > self.limit or self._entries[number, 0]:
                return
            self._used[0] = start + array.nbytes
        self._at(start, array.shape)[:] = array
        self._entries[number, 1:] = array.shape
        self._entries[number, 0] = start + 1  # last: from here on it is found

    def _at(self, start: int, shape: Sequence[int]) -> Kept:
        return numpy.frombuffer(self._room, self.dtype, prod(shape), start).reshape(shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return Cache, (self.count, 0, self.dtype.str)


def room(wanted: int | None, processes: int) -> int:
    """Bytes that one of ``processes`` may keep images in: a share of what is free, unless a number is ``wanted``."""
    total = int(SHARE * free_memory()) if wanted is None else wanted
    return total // processes


def free_memory() -> int:
    """Bytes that can be taken without swapping: what the machine has left, or less in a container with a limit."""
    free: int = psutil.virtual_memory().available
    return max(0, min([free, *_left_in_groups()]))


def _left_in_groups() -> Iterator[int]:
    """What the control groups of this process have left; files that the kernel keeps in memory count as free."""
    for limit, usage, stat in (
        *((folder / "memory.max", folder / "memory.current", folder / "memory.stat") for folder in _groups()),
        tuple(GROUPS / "memory" / f"memory.{name}" for name in ("limit_in_bytes", "usage_in_bytes", "stat")),
    ):
        try:
            numbers = dict(line.split() for line in stat.read_text().splitlines())
            files = int(numbers["inactive_file"]) + int(numbers["active_file"])
            yield int(limit.read_text()) - int(usage.read_text()) + files
        except (OSError, ValueError, KeyError):  # there is no such group, or it is without a limit ("max")
            continue


def _groups() -> list[Path]:
    """The folders of this process's control group and those it is in (version 2), as a container sees them."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    return [] if path is None else [GROUPS / path, *(GROUPS / parent for parent in Path(path).parents)]
