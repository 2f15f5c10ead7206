"""The contract of an adaptation method: what trains on a task, and what of it is stored.

A ``Method`` is asked before training what it will store at least, and then makes an ``Adaptation`` of a model. The
model is timm's own, unmodified: an adaptation works on its parameters around the optimiser's step, so that every
architecture, ``torch.compile``, mixed precision and data parallelism work as they do without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..architectures import Partition

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Adaptation", "Delta", "LayerState", "Method", "MethodSettings"]


@dataclass(frozen=True)
class MethodSettings:
    """What a method may be told.

    Attributes:
        epochs: passes over the training data.
        lr: learning rate of the weights.
        weight_decay: decoupled decay; gated layers decay towards the base, the others towards zero.
        sparsity: lambda, the strength of the penalty on the scores.
        threshold: tau; a gate is open while its score is at least this.
        score_lr: learning rate of the scores.
        norms: ``task`` (every task has its own), ``gated`` (a gate each) or ``frozen`` (those of the base).
    """

    epochs: int = 30
    lr: float = 1e-3
    weight_decay: float = 0.01
    sparsity: float = 1.0
    threshold: float = 0.1
    score_lr: float = 0.01
    norms: str = "task"


@dataclass(frozen=True)
class LayerState:
    """Where a layer's gate stands; ``score`` is None for a method without scores."""

    name: str
    open: bool
    score: float | None = None


@dataclass(frozen=True)
class Delta:
    """What a task changed: values in effect by state-dict name, and the state of each layer in forward order."""

    tensors: Mapping[str, Tensor]
    layers: tuple[LayerState, ...]


class Adaptation:
    """Trains a fixed set of a model's tensors. Methods whose set changes while training override the hooks.

    Args:
        model: timm's model on the device it will train on, holding the base's weights and a fresh head.
        partition: of that model.
        trained: names of the tensors that train and are stored; running statistics are stored but get no gradient.
        settings: what the method was told.
    """

    def __init__(
        self, model: nn.Module, partition: Partition, trained: Iterable[str], settings: MethodSettings
    ) -> None:
        self.model = model
        self.partition = partition
        self.settings = settings
        self.trained = frozenset(trained)
        self.frozen_norms = [norm for norm in partition.norms if not self.trained.intersection(norm.tensors)]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.trained)

    def train(self) -> None:
        """Put the model into training mode, except norms that stay the base's: their statistics must not move."""
        self.model.train()
        for norm in self.frozen_norms:
            self.model.get_submodule(norm.name).eval()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser of the weights: decay for matrices and kernels, none for vectors."""
        parameters = [p for name, p in self.model.named_parameters() if name in self.trained]
        return [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.settings.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]

    def score_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser of the scores; empty for a method without scores."""
        return []

    def start_epoch(self, epoch: int) -> None:
        """Called before each epoch, counted from 0."""

    def after_backward(self, lr: float) -> None:
        """Called with gradients in place, before the optimiser's step at learning rate ``lr``."""

    def after_step(self) -> None:
        """Called after the optimiser's step."""

    def penalty(self) -> float:
        """The value of the penalty that the method adds to the task's loss."""
        return 0.0

    def settled(self, epoch: int) -> bool:
        """Whether the result of this epoch may be chosen as the best one."""
        return True

    def layer_states(self) -> tuple[LayerState, ...]:
        """Where each layer's gate stands, in forward order: open where the layer trains."""
        return tuple(
            LayerState(layer.name, open=not self.trained.isdisjoint(layer.tensors)) for layer in self.partition.layers
        )

    def stored(self) -> frozenset[str]:
        """Names of the tensors that would be stored if training stopped now."""
        return self.trained

    def delta(self) -> Delta:
        """A copy, on the CPU, of what would be stored if training stopped now."""
        tensors = self.model.state_dict()
        stored = sorted(self.stored())
        return Delta({name: tensors[name].detach().cpu().clone() for name in stored}, self.layer_states())

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs beside the model and the optimisers: tensors, numbers, strings, lists, dicts."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""


class Method(ABC):
    """A way to adapt a base to a task.

    Attributes:
        name: what ``add-task --method`` and the catalog call it.
        summary: one line for ``taps-registry plugins`` and the docs.
        options: fields of ``MethodSettings`` beyond epochs, lr and weight_decay that the method listens to; setting
            another one is an error, not a silent no-op.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def least(self, partition: Partition, settings: MethodSettings) -> frozenset[str]:
        """Names of the tensors that the cheapest outcome stores: what a budget is held against before training."""

    def adapt(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Adaptation:
        """Make ``model`` trainable. By default what trains is what ``least`` names."""
        return Adaptation(model, partition, self.least(partition, settings), settings)
