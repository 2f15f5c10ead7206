"""Freed memory stays with the process while it trains, and no longer."""

from __future__ import annotations

import multiprocessing
import sys

import psutil
import pytest
import torch

from taps_registry.registry.training.allocator import kept_memory

BIG = 1 << 24  # floats: 64 MiB, 16,384 pages


def faults() -> list[int]:
    """Pages that the kernel had to give for a large tensor, made and freed again and again."""
    import resource

    found = []
    for _ in range(12):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(BIG)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return found


def resident() -> int:
    """Bytes of this process in memory."""
    size: int = psutil.Process().memory_info().rss
    return size


def observed() -> tuple[list[int], list[int], list[int]]:
    """Faults before and within the block, and the memory held before, within and after it."""
    outside, before = faults(), resident()
    with kept_memory():
        with kept_memory():  # ends nothing
            pass
        inside, within = faults(), resident()
    return outside, inside, [before, within, resident()]


@pytest.mark.skipif(sys.platform != "linux", reason="there is no mallopt")
def test_large_tensors_take_the_place_of_those_before_them_within_the_block_only() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as fresh:  # what tests before this one have freed is not there
        outside, inside, (before, within, after) = fresh.apply(observed)
    assert min(outside[1:]) > 16_000
    assert sum(inside[-4:]) < 100
    assert within - before > 60e6
    assert after - before < 10e6


def test_an_error_ends_the_block_as_well() -> None:
    with pytest.raises(KeyError), kept_memory():
        raise KeyError


def test_nothing_happens_without_mallopt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taps_registry.registry.training.allocator.sys.platform", "darwin")
    monkeypatch.setattr("taps_registry.registry.training.allocator.ctypes.CDLL", lambda name: pytest.fail("asked"))
    with kept_memory():
        pass
