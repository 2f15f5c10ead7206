"""Gates and what decides on them: one gate a layer, or one a block, shared by every method that gates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures import Layer
from . import Live, MethodSettings
from .options import PENALTIES

INITIAL_SCORE = 0.15  # above the paper's threshold of 0.1: every gate starts open


@dataclass
class Gate:
    """What one score decides on.

    Attributes:
        layers: one, or those of a block.
        tensors: live, by name; parameters and (for norms) running statistics.
        parked: the task's own values while the gate is closed, of no size if it is so for good; empty while it is open.
    """

    layers: tuple[Layer, ...]
    tensors: dict[str, Live]
    parked: dict[str, Tensor] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        return not self.parked

    @property
    def closed_for_good(self) -> bool:
        return any(not value.numel() for value in self.parked.values())

    def trainable(self) -> list[Live]:
        """Its parameters, without running statistics."""
        return [live for live in self.tensors.values() if isinstance(live.owner, nn.Parameter)]

    def inner(self) -> Tensor:
        """``<G, D>`` summed over the gate's parameters, a scalar; ``D`` is the parked one while closed, 0 for good."""
        products = [
            _inner(live.grad, (live.value if self.open else self.parked[live.name]) - live.base)
            for live in self.trainable()
            if live.grad is not None and not self.closed_for_good
        ]
        return torch.stack(products).sum() if products else next(iter(self.tensors.values())).base.new_zeros(())

    def close(self) -> None:
        """Park the task's values and put the base's back."""
        self.parked = {name: live.value.clone() for name, live in self.tensors.items()}
        self.hold()

    def hold(self) -> None:
        """Put the base's values in effect."""
        for live in self.tensors.values():
            live.value.copy_(live.base)

    def reopen(self) -> None:
        """Put the task's values back as they were when the gate closed."""
        for name, live in self.tensors.items():
            live.value.copy_(self.parked[name])
        self.parked = {}


def _inner(first: Tensor, second: Tensor) -> Tensor:
    """``<first, second>`` over all elements, a scalar, without a temporary of their size."""
    return torch.dot(first.reshape(-1), second.reshape(-1))


class Scores:
    """The scores of a model's gates, and the penalty ``lambda sum_l w_l |s_l|`` on them.

    The weights ``w_l`` are equal (``uniform``, the paper's ``1 / L``) or proportional to the gate's size or the root of
    it; their sum is 1.

    Args:
        gates: the layers that each gate decides on, in forward order.
        settings: what the method was told.
        device: that the model trains on.
        sizes: values in each gate's layers.
    """

    fixed = False

    def __init__(
        self,
        gates: Sequence[tuple[Layer, ...]],
        settings: MethodSettings,
        device: torch.device,
        sizes: Sequence[int],
    ) -> None:
        self.gates = tuple(gates)
        self.settings = settings
        self.values = nn.Parameter(torch.full((len(gates),), INITIAL_SCORE, device=device))
        weights: list[float] = [size ** PENALTIES[settings.options.penalty] for size in sizes]
        self.weights, self.total = torch.tensor(weights, device=device), sum(weights)
        self.penalised = False

    def start_epoch(self, epoch: int) -> None:
        """No penalty in the first epochs: deltas must grow before their gates are judged."""
        self.penalised = epoch >= warmup_epochs(self.settings.epochs)

    def start_step(self, done: float) -> bool:
        """Scores move to the end of the run."""
        return False

    def strength(self) -> float:
        """``lambda`` over the sum of the weights, or nothing yet."""
        return self.settings.options.sparsity / self.total if self.penalised else 0.0

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
        threshold = torch.tensor(self.settings.options.threshold, dtype=torch.float32).item()
        return [score >= threshold for score in self.values.tolist()]

    def settled(self, epoch: int) -> bool:
        """The second half of a run: an earlier epoch is only more expensive, its gates have yet to close."""
        return 2 * (epoch + 1) > self.settings.epochs

    def parameters(self) -> list[nn.Parameter]:
        return [self.values]

    def by_layer(self) -> dict[str, float]:
        """The score that decides on each layer."""
        return {
            layer.name: score for gate, score in zip(self.gates, self.values.tolist(), strict=True) for layer in gate
        }

    def begin_again(self) -> None:
        """Scores go on from where they are."""

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values.detach()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if "values" in state:  # else the run had limits before
            self.values.copy_(state["values"])


def warmup_epochs(epochs: int) -> int:
    """Epochs without penalty: a tenth of the run, as the authors' 3 of 30."""
    return ceil(epochs / 10)


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
