"""The encoding ``svd``: how many directions it keeps, and when it does not pay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from taps_registry.plugins.encodings.integers import Int8
from taps_registry.plugins.encodings.packing import packed_bytes
from taps_registry.plugins.encodings.svd import ERROR, Svd


def delta(rank: int, rows: int = 48, columns: int = 90, noise: float = 0.0) -> Tensor:
    """Along so many directions of equal strength, and noise of a share of their norm."""
    chance = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(rows, rank, generator=chance))[0]
    right = torch.linalg.qr(torch.randn(columns, rank, generator=chance))[0]
    signal = left @ right.T
    spread = torch.randn(rows, columns, generator=chance)
    return 1e-3 * (signal + noise * signal.norm() / spread.norm() * spread)


def error(value: Tensor, base: Tensor) -> float:
    """Of the delta's Frobenius norm."""
    found = Svd().decode(Svd().encode(value, base), base)
    return float((found - value).double().norm() / (value - base).double().norm())


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_as_many_directions_are_kept_as_there_are(rank: int) -> None:
    base = torch.zeros(48, 10, 3, 3)
    value = delta(rank).reshape(base.shape)
    parts = Svd().encode(value, base)
    assert {name: (tuple(part.shape), part.dtype) for name, part in parts.items()} == {
        "up": ((packed_bytes(48 * rank, 8),), torch.uint8),
        "up-scale": ((rank,), torch.float32),
        "down": ((packed_bytes(90 * rank, 8),), torch.uint8),
        "down-scale": ((rank,), torch.float32),
    }
    assert error(value, base) < 0.02


def test_what_is_left_behind_is_within_the_bound_and_one_direction_less_would_not_be() -> None:
    value, base = delta(6, noise=0.3), torch.zeros(48, 90)
    parts = Svd().encode(value, base)
    sizes = torch.linalg.svdvals(value.double())
    rank = len(parts["up-scale"])
    behind = [float(sizes[kept:].norm() / sizes.norm()) for kept in (rank, rank - 1)]
    assert behind[0] <= ERROR < behind[1]
    assert error(value, base) < ERROR + 0.01


def test_a_delta_in_all_directions_is_stored_as_int8_has_it() -> None:
    base = torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
    value = base + 1e-3 * torch.randn(40, 40, generator=torch.Generator().manual_seed(1))
    parts, whole = Svd().encode(value, base), Int8().encode(value, base)
    assert parts.keys() == whole.keys() == {"", "scale"}
    assert all(torch.equal(parts[name], whole[name]) for name in parts)
    assert torch.equal(Svd().decode(parts, base), Int8().decode(whole, base))


@pytest.mark.parametrize("wrong", [float("inf"), float("nan")])
def test_numbers_that_are_none_do_not_stop_it(wrong: float) -> None:
    value, base = delta(1), torch.zeros(48, 90)
    value[0, 0] = wrong
    assert Svd().encode(value, base).keys() == {"", "scale"}


def test_decoding_is_the_same_for_any_number_of_threads() -> None:
    base = torch.randn(256, 300, generator=torch.Generator().manual_seed(0))
    parts = Svd().encode(base + delta(20, 256, 300), base)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(Svd().decode(parts, base))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
