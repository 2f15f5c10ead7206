"""Rows of tensors as pieces of their own."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from taps_registry.plugins import Partition, PartitionError
from taps_registry.plugins.architectures.pieces import Pieces, faults, rows, split, tensor_of

# Pieces


def test_a_tensor_without_rows_has_one_place_like_any_other() -> None:
    model = nn.BatchNorm2d(2)
    assert faults([], {"scalar": 1, "empty": 0})["in no group"] == {"scalar", "empty"}
    Partition((), (), (), shared=tuple(model.state_dict())).check(model)
    with pytest.raises(PartitionError, match=r"in more than one group: num_batches_tracked$"):
        Partition((), (), ("num_batches_tracked",), shared=tuple(model.state_dict())).check(model)


def test_the_name_of_rows_says_which_and_of_what() -> None:
    assert rows("blocks.0.qkv.weight", 0, 64) == "blocks.0.qkv.weight[0:64]"
    assert split("blocks.0.qkv.weight[64:128]") == ("blocks.0.qkv.weight", slice(64, 128))
    assert split("blocks.0.qkv.weight") == ("blocks.0.qkv.weight", None)
    assert tensor_of("a.b[1:2]") == tensor_of("a.b") == "a.b"


@pytest.mark.parametrize("piece", ["a[]", "a[1]", "a[x:y]"])
def test_brackets_without_rows_in_them_are_an_error(piece: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        split(piece)


@given(st.data())
def test_tensors_cut_into_rows_anywhere_are_covered_once_and_no_longer_when_one_piece_changes(
    data: st.DataObject,
) -> None:
    length = data.draw(st.integers(2, 30))
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), min_size=1)))
    pieces = [rows("a", start, stop) for start, stop in pairwise([0, *cuts, length])]
    shuffled = data.draw(st.permutations(pieces))
    assert not any(faults(shuffled, {"a": length}).values())
    assert faults(shuffled[1:], {"a": length})["in no group"] == {"a"}
    assert faults([*shuffled, shuffled[0]], {"a": length})["in more than one group"] == {"a"}
    assert faults([*shuffled, rows("a", length, length + 1)], {"a": length})["not in the model"] == {"a"}
    assert faults([*shuffled, "b"], {"a": length})["not in the model"] == {"b"}
    assert torch.equal(
        torch.cat([Pieces({"a": torch.arange(length)})[piece] for piece in pieces]), torch.arange(length)
    )


def test_pieces_are_views_of_the_tensor() -> None:
    tensors = {"a": torch.zeros(4, 2), "b": torch.zeros(())}
    pieces = Pieces(tensors)
    pieces["a[1:3]"].fill_(1.0)
    assert tensors["a"].tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]
    assert pieces["b"] is tensors["b"]
    assert (list(pieces), len(pieces)) == (["a", "b"], 2)
