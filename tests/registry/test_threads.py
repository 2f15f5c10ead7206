"""Work on many tensors at once: as many at a time as torch has threads, each with one, and as if one after another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from taps_registry.registry.threads import side_by_side


def in_a_new_thread(work: Callable[[], int]) -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_are_in_the_order_of_the_items(threads: int) -> None:
    assert side_by_side(lambda item: item * item, range(100)) == [item * item for item in range(100)]
    assert side_by_side(lambda item: item, []) == []


def test_so_many_work_at_a_time_and_each_operation_has_one_thread(threads: int) -> None:
    together = threading.Barrier(threads)

    def work(_: int) -> int:
        together.wait(timeout=30)
        return torch.get_num_threads()

    assert side_by_side(work, range(threads)) == [1] * threads
    assert torch.get_num_threads() == in_a_new_thread(torch.get_num_threads) == threads


def test_who_else_is_at_it_keeps_the_threads_of_torch(threads: int) -> None:
    """Two threads load tasks at once; one begins while the other is in the middle."""
    begun, ended = threading.Event(), threading.Event()

    def first(_: int) -> int:
        begun.set()
        ended.wait(timeout=30)
        return torch.get_num_threads()

    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(lambda: (side_by_side(first, range(1)), torch.get_num_threads()))
        begun.wait(timeout=30)
        assert torch.get_num_threads() == threads
        assert side_by_side(lambda _: torch.get_num_threads(), range(4)) == [1] * 4
        ended.set()
        assert waiting.result() == ([1], threads)
    assert torch.get_num_threads() == in_a_new_thread(torch.get_num_threads) == threads


def test_the_first_failure_is_raised_and_torch_has_its_threads_again(threads: int) -> None:
    def work(item: int) -> int:
        if item in (3, 5):
            raise ValueError(item)
        return item

    with pytest.raises(ValueError, match="3"):
        side_by_side(work, range(8))
    assert torch.get_num_threads() == threads
