"""Weights with deltas of low rank, stored as factors in the form that the encoding in use has for them."""

from __future__ import annotations

from math import prod

from torch import Tensor

from ..encodings.low_rank import LowRankForm, PlainLowRank
from . import Live, MethodSettings, Size
from .reparametrised import Product


class LowRankDelta(Product):
    """A weight with a delta of low rank.

    Args:
        live: the weight.
        up: ``(C_out, r)``.
        down: ``(r, d)``.
        stored_as: form of the factors.
    """

    def __init__(self, live: Live, up: Tensor, down: Tensor, stored_as: LowRankForm) -> None:
        self.stored_as = stored_as
        self.form = stored_as.name
        super().__init__(live, {"up": up, "down": down})

    def pair(self) -> tuple[Tensor, Tensor]:
        return self.factors["up"], self.factors["down"]

    def parts(self) -> dict[str, Tensor]:
        up, down = (factor.detach().float().cpu() for factor in self.pair())
        return self.stored_as.parts(up, down)

    def size(self) -> Size:
        return size_of(len(self.factors["down"]), self.live, self.stored_as)

    @property
    def in_factors(self) -> bool:
        """Whether they have fewer values than the weight, whatever an encoding makes of both."""
        return self.size().params < self.live.base.numel()


def form_of(settings: MethodSettings) -> LowRankForm:
    """The form that factors are stored in."""
    return settings.low_rank_form or PlainLowRank()


def size_of(rank: int, live: Live, form: LowRankForm) -> Size:
    """What factors of this rank take."""
    rows, columns = len(live.base), prod(live.base.shape[1:])
    return Size(rank * (rows + columns), form.nbytes(rank, rows, columns))


def highest_rank(live: Live) -> int:
    """The highest rank whose factors have fewer values than the weight."""
    rows, columns = len(live.base), prod(live.base.shape[1:])
    return (rows * columns - 1) // (rows + columns)
