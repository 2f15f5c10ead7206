"""Directions of a delta: its singular vectors, and which of them are worth their bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import Live
from .low_rank import highest_rank

AMPLE = 1 / 8  # of a weight's values, in factors


@dataclass(frozen=True)
class Cut:
    """A delta's singular values, largest first, and vectors: ``(C_out, k)``, ``(k,)`` and ``(k, d)``."""

    left: Tensor
    sizes: Tensor
    right: Tensor

    @classmethod
    def of(cls, live: Live) -> Cut:
        """Of the shorter side, the eigenvectors of ``D D^T`` or ``D^T D``: a fifth of an SVD's time.

        Directions below about ``3e-4`` of the largest are not told apart from each other; ``D`` is their sum all the
        same.
        """
        delta = (live.value - live.base).reshape(len(live.base), -1).float()
        if delta.shape[0] > delta.shape[1]:
            right, sizes, left = cls._of_wide(delta.T)
            return cls(left.T, sizes, right.T)
        return cls(*cls._of_wide(delta))

    @staticmethod
    def _of_wide(delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(m, m)``, ``(m,)`` and ``(m, n)`` of a matrix ``(m, n)`` with ``m <= n``."""
        left = torch.linalg.eigh(delta @ delta.T).eigenvectors.flip(1)
        right = left.T @ delta
        sizes = right.norm(dim=1)
        unit = torch.eye(*right.shape, dtype=right.dtype, device=right.device)
        return left, sizes, torch.where(sizes[:, None] > 0, right / sizes[:, None], unit)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """``up (C_out, r)`` and ``down (r, d)``, of the same norms but for directions of no size.

        Of these ``down`` is a unit vector: two factors of zeros would have no gradients and stay so.
        """
        roots = self.sizes[:rank].sqrt()
        return self.left[:, :rank] * roots, roots.where(roots > 0, 1.0)[:, None] * self.right[:rank]


def choose(
    candidates: Sequence[Live],
    curvature: Sequence[float],
    cuts: Sequence[Cut],
    fits: Callable[[Counter[int]], bool],
) -> Counter[int]:
    """How many directions each weight keeps: of all, those worth most for what they take, as many as fit.

    A weight gets more than an eighth of its values in factors only when all others have as much: after a few steps
    deltas are noise for the most part, and small layers, whose directions take little, would get all of them.

    Args:
        candidates: the weights.
        curvature: mean squared gradient of each.
        cuts: the decomposition of each one's delta.
        fits: whether so many directions of the weights, by index, may be stored.
    """
    order = sorted(
        (
            rank > max(1, AMPLE * highest_rank(live)),
            -matters * size**2 / sum(live.base.reshape(len(live.base), -1).shape),
            index,
        )
        for index, (live, matters, cut) in enumerate(zip(candidates, curvature, cuts, strict=True))
        for rank, size in enumerate(cut.sizes[: highest_rank(live)].tolist(), 1)
    )
    kept, refused = 0, len(order) + 1
    while refused - kept > 1:
        middle = (kept + refused) // 2
        kept, refused = (middle, refused) if fits(_counted(order[:middle])) else (kept, middle)
    return _counted(order[:kept])


def _counted(order: Iterable[tuple[bool, float, int]]) -> Counter[int]:
    """How many directions of each candidate are among these."""
    return Counter(index for *_, index in order)
