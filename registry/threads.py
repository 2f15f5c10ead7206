"""Work on many tensors at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

import torch

Item = TypeVar("Item")
Made = TypeVar("Made")


def side_by_side(work: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    """What ``work`` makes of each item, in their order; raises what it raises of the first that it fails for.

    As many at a time as torch has threads, and meanwhile each operation has one: several threads of one operation wait
    for the slowest, which is long where something else has its processor.
    """
    with _threads() as threads, ThreadPoolExecutor(threads, initializer=_take_one) as pool:
        return list(pool.map(work, items))


_lock = Lock()
_users: list[int] = []  # what each caller in the middle of its work found, the first one first


@contextmanager
def _threads() -> Iterator[int]:
    """How many threads torch has, which is put back when the last caller has ended.

    What a worker sets is also what new threads of the process begin with: a caller that comes meanwhile in such a
    thread must not take that for what torch had.
    """
    with _lock:
        threads = _users[0] if _users else torch.get_num_threads()
        _users.append(threads)
    try:
        yield threads
    finally:
        with _lock:
            _users.pop()
            torch.set_num_threads(threads)


def _take_one() -> None:
    """Let operations of this thread have one thread, whatever others are told meanwhile."""
    torch.get_num_threads()  # the first operation would ask for what new threads begin with, and forget what follows
    torch.set_num_threads(1)
