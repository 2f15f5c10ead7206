"""Names of tensors and of rows of tensors: ``blocks.0.attn.qkv.weight[0:64]`` is the first 64 rows.

A layer owns whole tensors, or rows of one where a model fuses several layers into a single matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def rows(name: str, start: int, stop: int) -> str:
    """The name of the rows ``start`` to ``stop`` (excluded) of a tensor."""
    return f"{name}[{start}:{stop}]"


def split(piece: str) -> tuple[str, slice | None]:
    """The tensor's name in the state dict, and which of its rows; None for all of it.

    Raises ValueError for other brackets.
    """
    name, bracket, inside = piece.partition("[")
    if not bracket:
        return piece, None
    start, _, stop = inside.removesuffix("]").partition(":")
    return name, slice(int(start), int(stop))


def tensor_of(piece: str) -> str:
    """The state-dict name of the tensor that a piece is of."""
    return piece.partition("[")[0]


class Pieces(Mapping[str, "Tensor"]):
    """Tensors by state-dict name, and views of their rows by piece."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def __getitem__(self, piece: str) -> Tensor:
        name, which = split(piece)
        return self.tensors[name] if which is None else self.tensors[name][which]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def faults(pieces: Iterable[str], lengths: Mapping[str, int]) -> dict[str, set[str]]:
    """Which tensors the pieces do not cover exactly once, by what is wrong.

    ``lengths`` has the rows of each tensor of the model; 1 for a scalar.
    """
    placed: dict[str, list[tuple[int, int]]] = {name: [] for name in lengths}
    unknown: set[str] = set()
    for piece in pieces:
        name, which = split(piece)
        if name not in lengths:
            unknown.add(piece)
            continue
        placed[name].append((which.start, which.stop) if which else (0, lengths[name]))
    missing, twice = set(), set()
    for name, ranges in placed.items():
        end = 0
        for start, stop in sorted(ranges):
            if start > end:
                missing.add(name)
            if start < end:
                twice.add(name)
            end = max(end, stop)
        if end < lengths[name] or not ranges:
            missing.add(name)
        if end > lengths[name]:
            unknown.add(name)
    return {"in no group": missing, "not in the model": unknown, "in more than one group": twice}
