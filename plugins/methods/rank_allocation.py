"""The decomposition of a delta, and the allocation of ranks: to the singular directions that are worth their bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite, prod

import torch
from torch import Tensor

from ..errors import PluginError
from . import Live
from .low_rank import highest_rank

AMPLE = 1 / 8  # of a weight's values, in factors


@dataclass(frozen=True)
class Decomposition:
    """The singular value decomposition of a delta: its singular values, and its singular vectors of the shorter side.

    Those of the longer side follow from the delta, which the model holds: all of a model's would be as large as it is.

    Attributes:
        live: the weight, ``(C_out, ...)``, as a matrix ``(C_out, d)``.
        vectors: ``(m, m)``, in columns, with ``m = min(C_out, d)``.
        sizes: singular values, ``(m,)``, largest first.
    """

    live: Live
    vectors: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, live: Live) -> Decomposition:
        """By the eigenvectors of ``D D^T`` or ``D^T D``, whichever is smaller: a fifth of an SVD's time.

        Directions below about ``1e-7`` of the largest are not told apart from each other; ``D`` is their sum all the
        same.
        """
        wide = _wide(live)
        vectors = eigenvectors(wide, live.name)
        largest = wide.abs().amax().clamp(min=torch.finfo(wide.dtype).tiny)
        sizes = (vectors.T @ (wide / largest)).norm(dim=1) * largest  # scaled: a norm squares what it is given
        return cls(live, vectors, sizes)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """``up (C_out, r)`` and ``down (r, d)``, of the same norms but for directions of no size.

        Of these ``down`` is a unit vector: two factors of zeros would have no gradients and stay so.
        """
        short, sizes = self.vectors[:, :rank].T, self.sizes[:rank, None]
        long = short @ _wide(self.live)
        long = torch.where(sizes > 0, long / sizes, torch.eye(*long.shape, dtype=long.dtype, device=long.device))
        up, down = (long, short) if _is_tall(self.live) else (short, long)
        roots = sizes.sqrt()
        return (up * roots).T.contiguous(), (down * roots.where(roots > 0, 1.0)).contiguous()


def eigenvectors(wide: Tensor, name: str) -> Tensor:
    """Of ``D D^T``, in columns, that of the largest eigenvalue first.

    Squares of small deltas leave little of float32, and LAPACK does not converge on what is left; so the delta is
    scaled, and squared in float64, on the CPU where a device has none.

    Args:
        wide: ``D``, ``(m, n)`` in float32.
        name: of the weight, for the message.

    Raises:
        PluginError: if a value is not finite.
    """
    largest = float(wide.abs().max()) if wide.numel() else 0.0
    if not isfinite(largest):
        raise PluginError(f"The change of {name} is not finite. Try a lower --lr.")
    exact = wide.cpu() if wide.device.type == "mps" else wide
    scaled = exact.double() / (largest or 1.0)
    vectors: Tensor = torch.linalg.eigh(scaled @ scaled.T).eigenvectors
    return vectors.flip(1).to(wide)


def _is_tall(live: Live) -> bool:
    return len(live.base) > prod(live.base.shape[1:])


def _wide(live: Live) -> Tensor:
    """The delta as a matrix, ``(m, n)`` with ``m <= n``."""
    delta = (live.value - live.base).reshape(len(live.base), -1).float()
    return delta.T if _is_tall(live) else delta


def allocate_ranks(
    candidates: Sequence[Live],
    curvature: Sequence[float],
    decompositions: Sequence[Decomposition],
    fits: Callable[[Counter[int]], bool],
) -> Counter[int]:
    """How many directions each weight keeps: of all, those worth most for what they take, as many as fit.

    A weight gets more than an eighth of its values in factors only when all others have as much: after a few steps
    deltas are noise for the most part, and small layers, whose directions take little, would get all of them.

    Args:
        candidates: the weights.
        curvature: mean squared gradient of each.
        decompositions: the decomposition of each one's delta.
        fits: whether so many directions of the weights, by index, may be stored.
    """
    order = sorted(
        (
            rank > max(1, AMPLE * highest_rank(live)),
            -matters * size**2 / sum(live.base.reshape(len(live.base), -1).shape),
            index,
        )
        for index, (live, matters, decomposition) in enumerate(zip(candidates, curvature, decompositions, strict=True))
        for rank, size in enumerate(decomposition.sizes[: highest_rank(live)].tolist(), 1)
    )
    kept, refused = 0, len(order) + 1
    while refused - kept > 1:
        middle = (kept + refused) // 2
        kept, refused = (middle, refused) if fits(_counted(order[:middle])) else (kept, middle)
    return _counted(order[:kept])


def _counted(order: Iterable[tuple[bool, float, int]]) -> Counter[int]:
    """How many directions of each candidate are among these."""
    return Counter(index for *_, index in order)
