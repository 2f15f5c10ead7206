"""Choosing what is stored under limits.

All that could fit trains at first. Meanwhile the squared inner product ``<G, D>^2`` of each gate's gradient and delta
is averaged over the steps: for gradients of log-likelihoods that is the delta's quadratic form in the Fisher
information, twice what the loss rises, to second order, if the gate closes. From ``SHRINKS_AT`` to ``FIXED_AT`` of the
run what may be open shrinks to the limits, and the gates worth most for their price stay; others close for good. Then
gates are fixed: the rest of the run trains what will be stored, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures import Layer
from . import Stored
from .limits import Limit

SHRINKS_AT, FIXED_AT = 0.1, 0.4  # shares of the run
MEMORY = 0.95  # of the average over steps


class Steering:
    """Gates that open where it is worth its price.

    Args:
        gates: the layers that each gate decides on, in forward order.
        limits: what may be stored.
        device: that the model trains on.
        costs: what each gate stores while open.
        always: what is stored whatever the gates do.
    """

    def __init__(
        self,
        gates: Sequence[tuple[Layer, ...]],
        limits: Sequence[Limit],
        device: torch.device,
        costs: Sequence[Stored],
        always: Stored,
    ) -> None:
        self.gates = tuple(gates)
        self.free = [limit.amount - limit.used(always) for limit in limits]
        self.prices = [[limit.used(cost) for limit in limits] for cost in costs]
        self.worth = torch.zeros(len(gates), device=device)
        self.opened = [self._fits(price, self.free) for price in self.prices]
        self.fixed = False

    @staticmethod
    def _fits(price: Iterable[float], left: Iterable[float]) -> bool:
        return all(cost <= free for cost, free in zip(price, left, strict=True))

    def start_epoch(self, epoch: int) -> None:
        """Epochs make no difference."""

    def start_step(self, done: float) -> bool:
        """Shrink what is open as the run goes on. Returns whether gates have closed for good, or all are fixed now."""
        if self.fixed or done < SHRINKS_AT:
            return False
        before = self.opened
        self.fixed = done >= FIXED_AT
        left = max(0.0, (FIXED_AT - done) / (FIXED_AT - SHRINKS_AT))
        self.opened = self.choose(1 + (self._excess() - 1) * left**3)
        return self.fixed or self.opened != before

    def _excess(self) -> float:
        """How many times the limits all gates together take that could be open."""
        wanted = [price for price in self.prices if self._fits(price, self.free)]
        shares = [sum(price[kind] for price in wanted) / max(1, free) for kind, free in enumerate(self.free)]
        return max(1.0, *shares)

    def choose(self, times: float = 1.0) -> list[bool]:
        """Of the gates that are open, those worth most for their price that fit into so many times the limits."""
        left = [times * free for free in self.free]
        value = [
            worth / max(1e-12, *(cost / max(1, free) for cost, free in zip(price, self.free, strict=True)))
            for worth, price in zip(self.worth.tolist(), self.prices, strict=True)
        ]
        opened = [False] * len(self.gates)
        for gate in sorted(range(len(self.gates)), key=lambda gate: (-value[gate], gate)):
            price = self.prices[gate]
            if self.opened[gate] and self._fits(price, left):
                opened[gate] = True
                left = [free - cost for cost, free in zip(price, left, strict=True)]
        return opened

    def set_gradients(self, inner: Tensor) -> None:
        """Learn from a step.

        Args:
            inner: ``(L,)``, the inner product of gradient and delta of each gate's layers.
        """
        squares = inner.to(self.worth).square()
        self.worth.lerp_(squares.where(squares.isfinite(), self.worth), 1 - MEMORY)  # fp16's first steps may overflow

    def wanted(self) -> list[bool]:
        """Which gates are to be open."""
        return self.opened

    def settled(self, epoch: int) -> bool:
        """Whether the result of this epoch may be the task's."""
        return self.fixed

    def penalty(self) -> float:
        return 0.0

    def parameters(self) -> list[nn.Parameter]:
        return []

    def by_layer(self) -> dict[str, float]:
        """No layer has a score."""
        return {}

    def begin_again(self) -> None:
        """Let fixed gates move again."""
        self.fixed = False
        self.opened = [self._fits(price, self.free) for price in self.prices]

    def state_dict(self) -> dict[str, Any]:
        return {"worth": self.worth, "opened": self.opened, "fixed": self.fixed}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if "worth" in state:  # else the run had no limits before
            self.worth.copy_(state["worth"])
            self.opened, self.fixed = state["opened"], state["fixed"]
