"""Work on many tensors at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Made = TypeVar("Made")


def side_by_side(work: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    """What ``work`` makes of each item, in their order.

    As many at a time as torch has threads, and meanwhile each operation has one: several threads of one operation wait
    for the slowest, which is long where something else has its processor.

    Raises:
        what ``work`` raises of the first item for which it does.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=_take_one) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)  # of this thread it never changed, but it is what new ones begin with


def _take_one() -> None:
    """Let operations of this thread have one thread, whatever others are told meanwhile."""
    torch.get_num_threads()  # the first operation would ask for what new threads begin with, and forget what follows
    torch.set_num_threads(1)
