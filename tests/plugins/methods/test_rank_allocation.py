"""Directions of small, empty and rank-deficient deltas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from taps_registry.plugins.encodings.svd import Svd
from taps_registry.plugins.errors import PluginError
from taps_registry.plugins.methods import Live
from taps_registry.plugins.methods.rank_allocation import Decomposition, eigenvectors

# What torchvision's regnet_y_400mf came to after a few steps: squares of 1e-6 leave nothing for float32 to tell apart.
NOISE = torch.Generator().manual_seed(0)


def small_of_rank(rank: int, size: float) -> Tensor:
    """``(72, 208)``, with this largest entry."""
    made = torch.randn(72, rank, generator=NOISE) @ torch.randn(rank, 208, generator=NOISE)
    return made * (size / made.abs().max())


def cut_of(delta: Tensor) -> Decomposition:
    base = torch.zeros_like(delta)
    live = Live("layer.weight", nn.Parameter(base))
    live.value.copy_(delta)
    return Decomposition.of(live)


@pytest.mark.parametrize("size", [1e-6, 1e-12, 1e-30, 1.0, 1e12, 1e30])
@pytest.mark.parametrize("rank", [1, 8, 72])
def test_a_delta_of_any_size_is_the_product_of_its_directions(size: float, rank: int) -> None:
    delta = small_of_rank(rank, size)
    up, down = cut_of(delta).factors(rank)
    assert torch.isfinite(up).all()
    assert torch.isfinite(down).all()
    assert (up @ down - delta).abs().max() <= 1e-3 * size


def test_a_delta_of_rank_one_has_one_direction() -> None:
    sizes = cut_of(small_of_rank(1, 1e-6)).sizes
    assert sizes[0] > 0
    assert sizes[1] <= 1e-3 * sizes[0]


def test_a_delta_of_zeros_has_directions_of_no_size() -> None:
    cut = cut_of(torch.zeros(72, 208))
    assert cut.sizes.tolist() == [0.0] * 72
    up, down = cut.factors(4)
    assert up.abs().max() == 0
    assert torch.allclose(down.norm(dim=1), torch.ones(4)), "else the factors would have no gradients"


def test_vectors_are_orthogonal_and_the_largest_come_first() -> None:
    delta = small_of_rank(8, 1e-6)
    vectors = eigenvectors(delta, "layer.weight")
    assert torch.allclose(vectors.T @ vectors, torch.eye(72), atol=1e-5)
    lengths = (vectors.T @ delta).norm(dim=1)
    assert (lengths[:8] >= lengths[8:].max()).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_delta_that_is_not_finite_is_named(value: float) -> None:
    delta = torch.zeros(4, 6)
    delta[1, 2] = value
    with pytest.raises(PluginError, match=r"The change of layer\.weight is not finite\. Try a lower --lr\."):
        cut_of(delta)


@pytest.mark.parametrize("delta", [small_of_rank(8, 1e-6), small_of_rank(1, 1e-6), torch.zeros(72, 208)])
def test_the_low_rank_encoding_takes_such_deltas(delta: Tensor) -> None:
    base = torch.zeros(72, 208)
    back = Svd().decode(Svd().encode(delta, base), base)
    assert (back - delta).norm() <= 0.1 * delta.norm()
