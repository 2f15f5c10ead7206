"""TAPS on low-rank deltas: ``W0 + 1[s >= tau] (alpha / r) B A``, a gate a layer as in ``taps``, factors as in ``lora``.

With ``G`` the gradient of the weight, the score's inner product is ``<G, (alpha / r) B A> = <dLoss/dB, B>``: the
factors' own gradients already hold it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..architectures import Partition
from ..spec import Registrar, hookimpl
from . import Adaptation, LayerState, Method, MethodSettings, Stored, head_and_norms, no_gated_norms
from .gating import Gated, gate_groups, judge
from .lora import low_rank_units
from .reparametrised import Reparametrised, Unit, stored


class TapsLoraAdaptation(Gated, Reparametrised):
    """Trains factors and the scores of their gates; a closed layer computes with the base's own weight."""

    def __init__(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> None:
        units = low_rank_units(TapsLora.name, model, partition, settings)
        self.groups = gate_groups(partition.layers, settings.granularity)
        named = {unit.live.name: unit for unit in units}
        self.gated = [
            [named[name] for layer in group for name in layer.tensors if name in named] for group in self.groups
        ]
        always = head_and_norms(partition, settings)
        sizes = [sum(unit.size().params for unit in gate) for gate in self.gated]
        costs = [stored(gate, ()) for gate in self.gated]
        device = next(model.parameters()).device
        self.scores = judge(self.groups, settings, device, costs, Stored(always), sizes)
        super().__init__(model, partition, units, always, settings)

    @torch.no_grad()
    def before_step(self, lr: float) -> None:
        if not self.scores.fixed:
            like = self.units[0].live.base
            inner = [
                torch.stack([_inner(unit) for unit in gate]).sum() if gate else torch.zeros(()) for gate in self.gated
            ]
            self.scores.set_gradients(torch.stack([value.to(like) for value in inner]))
        for units, opened in zip(self.gated, self.scores.wanted(), strict=True):
            for factor in (factor for unit in units if not opened for factor in unit.factors.values()):
                factor.grad = None  # a zero would let momentum and decay move a closed layer

    def write(self) -> None:
        super().write()
        for units, opened in zip(self.gated, self.scores.wanted(), strict=True):
            for unit in (unit for unit in units if not opened):
                unit.live.value.copy_(unit.live.base)

    def start_step(self, done: float) -> bool:
        """Gates change what is computed, not which of the model's parameters require gradients."""
        if self.scores.start_step(done):
            self.write()
        return False

    def begin_again(self) -> None:
        self.scores.begin_again()

    def active(self) -> Iterable[Unit]:
        return [
            unit for units, opened in zip(self.gated, self.scores.wanted(), strict=True) if opened for unit in units
        ]

    def layer_states(self) -> tuple[LayerState, ...]:
        scores = self.scores.by_layer()
        opened = {
            layer.name: is_open
            for group, is_open in zip(self.groups, self.scores.wanted(), strict=True)
            for layer in group
        }
        return tuple(
            LayerState(layer.name, opened[layer.name], scores.get(layer.name)) for layer in self.partition.layers
        )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "scores": self.scores.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scores.load_state_dict(state["scores"])
        super().load_state_dict(state)


def _inner(unit: Unit) -> torch.Tensor:
    up = unit.factors["up"]
    return (up.grad * up).sum() if up.grad is not None else up.new_zeros(())


class TapsLora(Method):
    """Gates low-rank deltas."""

    name = "taps-lora"
    summary = "low-rank updates of the layers whose gate stayed open, the norms and the head"
    options = frozenset(
        {"sparsity", "penalty", "limits", "threshold", "score_lr", "norms", "granularity", "rank", "alpha", "factors"}
    )

    def check(self, settings: MethodSettings) -> None:
        no_gated_norms(self, settings)

    def least(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Stored:
        return Stored(head_and_norms(partition, settings))

    def most(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Stored:
        units = low_rank_units(self.name, model, partition, settings)
        return stored(units, head_and_norms(partition, settings))

    def adapt(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Adaptation:
        return TapsLoraAdaptation(model, partition, settings)


@hookimpl
def register_methods(registrar: Registrar) -> None:
    registrar.method(TapsLora())
