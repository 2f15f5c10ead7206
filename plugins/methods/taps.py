"""TAPS, Task Adaptive Parameter Sharing (Wallingford et al., CVPR 2022, arXiv 2203.16708).

A layer with base weights ``W0``, task delta ``D`` and score ``s`` computes with ``W0 + 1[s >= tau] D``, and the loss
is the task's plus ``(lambda / L) sum_l |s_l|`` over the ``L`` gates. The step function passes gradients straight
through, so with ``G`` the gradient with respect to the effective weights ::

    dLoss/ds = <G, D> + (lambda / L) sign(s)            dLoss/dD = 1[s >= tau] G

No module is replaced. The model's own parameter *is* the effective weight ``W``, with ``D = W - W0``: ``W0 + D`` while
the gate is open, ``W0`` itself, to the last bit, while it is closed. Each step then costs one inner product a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..architectures import Partition
from ..spec import Registrar, hookimpl
from . import Adaptation, LayerState, Method, MethodSettings, Stored, head_and_norms, live_tensors
from .gating import Gate, Scores, gate_groups
from .options import TapsOptions
from .steering import Steering


class TapsAdaptation(Adaptation):
    """Trains the gated layers and their scores, the norms as told, and the head."""

    def __init__(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> None:
        gated = partition.layers + (partition.norms if settings.options.norms == "gated" else ())
        self.always = head_and_norms(partition, settings)
        super().__init__(model, partition, self.always.union(*(layer.tensors for layer in gated)), settings)
        groups = gate_groups(gated, settings.options.granularity)
        self.gates = [
            Gate(layers, live_tensors(model, [name for layer in layers for name in layer.tensors])) for layers in groups
        ]
        sizes = [sum(live.base.numel() for live in gate.trainable()) for gate in self.gates]
        costs = [Stored(frozenset(gate.tensors)) for gate in self.gates]
        device = next(model.parameters()).device
        self.scores: Scores | Steering = (
            Steering(groups, settings.limits, device, costs, Stored(self.always))
            if settings.limits
            else Scores(groups, settings, device, sizes)
        )
        self._settle()

    def start_epoch(self, epoch: int) -> None:
        self.scores.start_epoch(epoch)

    def end_epoch(self, epoch: int) -> None:
        if epoch + 1 == self.settings.epochs:
            self.start_step(1.0)  # a run of so few steps that gates were not fixed yet

    def settled(self, epoch: int) -> bool:
        return self.scores.settled(epoch)

    def penalty(self) -> float:
        return self.scores.penalty()

    @torch.no_grad()
    def before_step(self, lr: float) -> None:
        """Set the scores' gradients, drop those of closed layers, and decay open ones towards the base."""
        if not self.scores.fixed:
            self.scores.set_gradients(torch.stack([gate.inner() for gate in self.gates]))
        for gate in self.gates:
            for live in gate.trainable():
                if gate.open:
                    live.value.lerp_(live.base, lr * self.settings.weight_decay)
                else:
                    live.drop_grad()  # a zero would let momentum and decay move the layer

    @torch.no_grad()
    def after_step(self) -> None:
        """Open and close gates as the scores now say."""
        super().after_step()
        self._apply()

    def _apply(self) -> None:
        for gate, wanted in zip(self.gates, self.scores.wanted(), strict=True):
            if wanted != gate.open:
                gate.reopen() if wanted else gate.close()
                self._set_mode(gate)
            elif not gate.open:
                self._hold_rows(gate)

    def _hold_rows(self, gate: Gate) -> None:
        """Undo what the optimiser did to closed rows of a parameter whose other rows train."""
        if any(live.rows is not None and live.trains for live in gate.tensors.values()):
            gate.hold()

    def _set_mode(self, gate: Gate) -> None:
        """A closed norm computes with the base's statistics and leaves them alone."""
        for layer in gate.layers:
            if layer.kind == "norm":
                self.model.get_submodule(layer.name).train(gate.open)

    def train(self) -> None:
        super().train()
        for gate in self.gates:
            self._set_mode(gate)

    @torch.no_grad()
    def start_step(self, done: float) -> bool:
        closed = self.scores.start_step(done)
        if (
            closed and torch.distributed.is_available() and torch.distributed.is_initialized()
        ):  # they agree on what trains at the start, and once all gates are fixed
            closed = self.scores.fixed
        if closed:
            self._settle()
        return closed

    def _settle(self) -> None:
        """Open and close gates; within limits, what is closed needs neither gradients nor its own values any more."""
        self._apply()
        if not self.settings.limits:
            return
        moving = {id(live.owner) for gate in self.gates if gate.open for live in gate.trainable()}
        for gate in self.gates:
            for live in gate.trainable():
                live.owner.requires_grad_(id(live.owner) in moving)
            if not gate.open:
                gate.parked = dict.fromkeys(gate.tensors, torch.empty(0))

    def begin_again(self) -> None:
        """Gates that were fixed may move again; those that were closed then start from the base."""
        self.scores.begin_again()
        for gate in self.gates:
            for name, live in gate.tensors.items():
                if name in gate.parked and gate.parked[name].shape != live.base.shape:
                    gate.parked[name] = live.base.clone()
                if isinstance(live.owner, nn.Parameter):
                    live.owner.requires_grad_(True)
        self._settle()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Gated layers decay towards the base instead of towards zero."""
        gated = {id(live.owner): live.owner for gate in self.gates for live in gate.trainable()}
        others = [
            {**group, "params": [p for p in group["params"] if id(p) not in gated]}
            for group in super().parameter_groups()
        ]
        return [{"params": list(gated.values()), "weight_decay": 0.0}, *others]

    def score_groups(self) -> list[dict[str, Any]]:
        lr = self.settings.options.score_lr
        return [{"params": scores, "weight_decay": 0.0, "lr": lr}] if (scores := self.scores.parameters()) else []

    def layer_states(self) -> tuple[LayerState, ...]:
        opened = {layer.name: gate.open for gate in self.gates for layer in gate.layers}
        scores = self.scores.by_layer()
        gated = self.partition.layers + (self.partition.norms if self.settings.options.norms == "gated" else ())
        return tuple(LayerState(layer.name, opened[layer.name], scores.get(layer.name)) for layer in gated)

    def stored(self) -> Stored:
        return Stored(self.always.union(*(gate.tensors for gate in self.gates if gate.open)))

    def state_dict(self) -> dict[str, Any]:
        parked = {name: tensor for gate in self.gates for name, tensor in gate.parked.items()}
        return {"scores": self.scores.state_dict(), "parked": parked}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scores.load_state_dict(state["scores"])
        for gate in self.gates:
            parked = {name: state["parked"][name] for name in gate.tensors if name in state["parked"]}
            gate.parked = {name: value.to(gate.tensors[name].base.device) for name, value in parked.items()}
        if self.settings.limits:
            self._settle()


class Taps(Method):
    """The method this project is named after."""

    name = "taps"
    summary = "the layers whose gate stayed open, the norms and the head"
    options = TapsOptions
    fits_limits = True

    def least(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Stored:
        return Stored(head_and_norms(partition, settings))

    def most(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Stored:
        norms = partition.norm_tensors() if settings.options.norms == "gated" else ()
        return Stored(head_and_norms(partition, settings).union(partition.layer_tensors(), norms))

    def adapt(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Adaptation:
        return TapsAdaptation(model, partition, settings)


@hookimpl
def register_methods(registrar: Registrar) -> None:
    registrar.method(Taps())
