"""Scores and what they decide: one gate a layer, or one a block, shared by every method that gates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures import Layer
from . import PENALTIES, MethodSettings, Stored
from .steering import FIXED_AT, Steering

INITIAL_SCORE = 0.15  # above the paper's threshold of 0.1: every gate starts open


class Scores:
    """The scores of a model's gates, the penalty on them, and which gates are to be open.

    The penalty is ``lambda sum_l w_l |s_l|`` with ``w_l`` equal (``uniform``, the paper's ``1 / L``) or proportional to
    the gate's size or the root of it, and of sum 1. With limits on what is stored, ``lambda`` is steered towards them,
    and after a share of the run the gates are fixed.

    Args:
        gates: the layers that each gate decides on, in forward order.
        settings: what the method was told.
        device: that the model trains on.
        sizes: values in each gate's layers.
        costs: what each gate stores while open.
        always: what is stored whatever the gates do.
    """

    def __init__(
        self,
        gates: Sequence[tuple[Layer, ...]],
        settings: MethodSettings,
        device: torch.device,
        sizes: Sequence[int],
        costs: Sequence[Stored],
        always: Stored,
    ) -> None:
        self.gates = tuple(gates)
        self.settings = settings
        self.values = nn.Parameter(torch.full((len(gates),), INITIAL_SCORE, device=device))
        weights = [size ** PENALTIES[settings.penalty] for size in sizes]
        self.weights, self.total = torch.tensor(weights, device=device), sum(weights)
        self.steering = Steering(settings.limits, costs, always) if settings.limits else None
        self.possible = self.steering.possible() if self.steering else [True] * len(gates)
        self.fixed: list[bool] | None = None
        self.penalised = False

    def start_epoch(self, epoch: int) -> None:
        """No penalty in the first epochs: deltas must grow before their gates are judged."""
        self.penalised = epoch >= warmup_epochs(self.settings.epochs)

    def start_step(self, done: float) -> bool:
        """Steer. ``done`` is the share of the run behind. Returns whether the gates are fixed from now on."""
        if self.steering is None or self.fixed is not None:
            return False
        if done >= FIXED_AT:
            self.fixed = self.steering.choose(self.values.tolist())
            return True
        if self.penalised:
            self.steering.follow(self.wanted(), done)
        return False

    def strength(self) -> float:
        """``lambda`` as it is now, over the sum of the weights."""
        if not self.penalised or self.fixed is not None:
            return 0.0
        return self.settings.sparsity / self.total * (self.steering.multiplier if self.steering else 1.0)

    def penalty(self) -> float:
        return self.strength() * float((self.weights * self.values.detach().abs()).sum())

    def set_gradients(self, inner: Tensor) -> None:
        """``<G, D> + lambda w_l sign(s)``.

        Args:
            inner: ``(L,)``, the inner product of gradient and delta of each gate's layers.
        """
        self.values.grad = inner.to(self.values) + self.strength() * self.weights * torch.sign(self.values.detach())

    def wanted(self) -> list[bool]:
        """Which gates are to be open. The threshold counts as float32 has it, so that a stored 0.1 reaches 0.1."""
        if self.fixed is not None:
            return self.fixed
        threshold = torch.tensor(self.settings.threshold, dtype=torch.float32).item()
        return [
            possible and score >= threshold for possible, score in zip(self.possible, self.values.tolist(), strict=True)
        ]

    def settled(self, epoch: int) -> bool:
        """Whether the result of this epoch may be the task's."""
        return gates_settled(epoch, self.settings.epochs) if self.steering is None else self.fixed is not None

    def begin_again(self) -> None:
        """Let fixed gates move again, from the scores they have."""
        self.fixed = None
        if self.steering is not None:
            self.steering.done = 0.0

    def by_layer(self) -> dict[str, float]:
        """The score that decides on each layer."""
        return {
            layer.name: score for gate, score in zip(self.gates, self.values.tolist(), strict=True) for layer in gate
        }

    def state_dict(self) -> dict[str, Any]:
        steering = self.steering
        return {
            "values": self.values.detach(),
            "fixed": self.fixed,
            "steering": [steering.multiplier, steering.done] if steering else None,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.values.copy_(state["values"])
        self.fixed = state["fixed"]
        if self.steering is not None and state["steering"]:
            self.steering.multiplier, self.steering.done = state["steering"]


def warmup_epochs(epochs: int) -> int:
    """Epochs without penalty: a tenth of the run, as the authors' 3 of 30."""
    return ceil(epochs / 10)


def gates_settled(epoch: int, epochs: int) -> bool:
    """The second half of a run: an earlier epoch is only more expensive, its gates have yet to close."""
    return 2 * (epoch + 1) > epochs


def gate_groups(layers: Iterable[Layer], granularity: str) -> list[tuple[Layer, ...]]:
    """The layers that each gate decides on.

    Args:
        layers: in forward order.
        granularity: ``layer`` for a gate each, ``block`` for one for the layers of a block.
    """
    if granularity == "layer":
        return [(layer,) for layer in layers]
    listed = list(layers)
    order = {key: index for index, key in reversed(list(enumerate((layer.stage, layer.block) for layer in listed)))}
    by_block = sorted(listed, key=lambda layer: order[layer.stage, layer.block])
    return [tuple(members) for _, members in groupby(by_block, key=lambda layer: (layer.stage, layer.block))]
