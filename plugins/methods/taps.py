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
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures import Layer, Partition
from ..spec import Registrar, hookimpl
from . import Adaptation, LayerState, Method, MethodSettings

INITIAL_SCORE = 0.15  # above the paper's threshold of 0.1: every gate starts open


@dataclass
class Gate:
    """A gated layer: its tensors in the model, the base's, and the task's while the gate is closed.

    Attributes:
        layer: which tensors of the model the gate decides on.
        tensors: those tensors, live, by name; parameters and (for norms) running statistics.
        base: frozen copies of them as the base has them.
        parked: the task's own values while the gate is closed; empty while it is open.
    """

    layer: Layer
    tensors: dict[str, Tensor]
    base: dict[str, Tensor]
    parked: dict[str, Tensor] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        return not self.parked

    def trainable(self) -> dict[str, nn.Parameter]:
        """Its parameters, without running statistics."""
        return {name: t for name, t in self.tensors.items() if isinstance(t, nn.Parameter)}

    def score_gradient(self) -> Tensor:
        """``<G, D>`` summed over the layer's parameters, a scalar; ``D`` is the parked one while closed."""
        products = [
            _inner(parameter.grad, (parameter if self.open else self.parked[name]) - self.base[name])
            for name, parameter in self.trainable().items()
            if parameter.grad is not None
        ]
        return torch.stack(products).sum() if products else next(iter(self.base.values())).new_zeros(())

    def close(self) -> None:
        """Park the task's values and put the base's back."""
        self.parked = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        self._put(self.base)

    def reopen(self) -> None:
        """Put the task's values back as they were when the gate closed."""
        self._put(self.parked)
        self.parked = {}

    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor.detach().copy_(values[name])


class TapsAdaptation(Adaptation):
    """Trains the gated layers and their scores, the norms as told, and the head."""

    def __init__(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> None:
        gated = partition.layers + (partition.norms if settings.norms == "gated" else ())
        always = always_stored(partition, settings)
        super().__init__(model, partition, always.union(*(layer.tensors for layer in gated)), settings)
        self.always = always
        live = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.gates = [_gate(layer, live) for layer in gated]
        device = next(iter(live.values())).device
        self.scores = nn.Parameter(torch.full((len(gated),), INITIAL_SCORE, device=device))
        self.penalised = False

    @torch.no_grad()
    def after_backward(self, lr: float) -> None:
        """Set the scores' gradients, drop those of closed layers, and decay open ones towards the base."""
        inner = torch.stack([gate.score_gradient() for gate in self.gates]).to(self.scores)
        self.scores.grad = inner + self._strength() * torch.sign(self.scores)
        for gate in self.gates:
            for name, parameter in gate.trainable().items():
                if gate.open:
                    parameter.lerp_(gate.base[name], lr * self.settings.weight_decay)
                else:
                    parameter.grad = None  # a zero would let momentum and decay move the layer

    @torch.no_grad()
    def after_step(self) -> None:
        """Open and close gates as the scores now say."""
        for gate, score in zip(self.gates, self.scores.tolist(), strict=True):
            wanted = score >= self._threshold()
            if wanted != gate.open:
                gate.reopen() if wanted else gate.close()
                self._set_mode(gate)

    def _threshold(self) -> float:
        """The threshold as float32 holds it, so that a score stored as 0.1 counts as reaching 0.1."""
        return torch.tensor(self.settings.threshold, dtype=torch.float32).item()

    def _strength(self) -> float:
        """``lambda / L``, or nothing in the first epochs: deltas must grow before their gates are judged."""
        return self.settings.sparsity / len(self.gates) if self.penalised else 0.0

    def _set_mode(self, gate: Gate) -> None:
        """A closed norm computes with the base's statistics and leaves them alone."""
        if gate.layer.kind == "norm":
            self.model.get_submodule(gate.layer.name).train(gate.open)

    def train(self) -> None:
        super().train()
        for gate in self.gates:
            self._set_mode(gate)

    def start_epoch(self, epoch: int) -> None:
        self.penalised = epoch >= warmup_epochs(self.settings.epochs)

    def settled(self, epoch: int) -> bool:
        """The second half of the run: an earlier epoch is only more expensive, its gates have yet to close."""
        return 2 * (epoch + 1) > self.settings.epochs

    def parameter_groups(self) -> list[dict[str, Any]]:
        gated = {id(p): p for gate in self.gates for p in gate.trainable().values()}
        others = [
            {**group, "params": [p for p in group["params"] if id(p) not in gated]}
            for group in super().parameter_groups()
        ]
        return [{"params": list(gated.values()), "weight_decay": 0.0}, *others]

    def score_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.scores], "weight_decay": 0.0}]

    def penalty(self) -> float:
        return self._strength() * float(self.scores.detach().abs().sum())

    def layer_states(self) -> tuple[LayerState, ...]:
        return tuple(
            LayerState(gate.layer.name, gate.open, score)
            for gate, score in zip(self.gates, self.scores.tolist(), strict=True)
        )

    def stored(self) -> frozenset[str]:
        return self.always.union(*(gate.layer.tensors for gate in self.gates if gate.open))

    def state_dict(self) -> dict[str, Any]:
        parked = {name: tensor for gate in self.gates for name, tensor in gate.parked.items()}
        return {"scores": self.scores.detach(), "parked": parked}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scores.copy_(state["scores"])
        for gate in self.gates:
            if gate.layer.tensors[0] in state["parked"]:
                gate.parked = {name: state["parked"][name].to(tensor.device) for name, tensor in gate.tensors.items()}


def _inner(first: Tensor, second: Tensor) -> Tensor:
    """``<first, second>`` over all elements, a scalar, without a temporary of their size."""
    return torch.dot(first.reshape(-1), second.reshape(-1))


def _gate(layer: Layer, live: Mapping[str, Tensor]) -> Gate:
    tensors = {name: live[name] for name in layer.tensors}
    return Gate(layer, tensors, {name: tensor.detach().clone() for name, tensor in tensors.items()})


def warmup_epochs(epochs: int) -> int:
    """Epochs without penalty: a tenth of the run, as the authors' 3 of 30."""
    return ceil(epochs / 10)


def always_stored(partition: Partition, settings: MethodSettings) -> frozenset[str]:
    """The head, and the norms unless they are gated or frozen."""
    return frozenset(partition.head).union(partition.norm_tensors() if settings.norms == "task" else ())


class Taps(Method):
    """The method this project is named after."""

    name = "taps"
    summary = "the layers whose gate stayed open, the norms and the head"
    options = frozenset({"sparsity", "threshold", "score_lr", "norms"})

    def least(self, partition: Partition, settings: MethodSettings) -> frozenset[str]:
        return always_stored(partition, settings)

    def adapt(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Adaptation:
        return TapsAdaptation(model, partition, settings)


@hookimpl
def register_methods(registrar: Registrar) -> None:
    registrar.method(Taps())
