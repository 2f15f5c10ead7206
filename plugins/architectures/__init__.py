"""The contract of an architecture: which tensors of a model form its layers, norms and head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..errors import PartitionError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Architecture", "Layer", "Partition"]


@dataclass(frozen=True)
class Layer:
    """One module's own tensors, which are kept or dropped together.

    Attributes:
        name: the module's path in the model, such as ``layer1.0.conv1``.
        kind: ``conv``, ``linear``, ``norm``, ... : what ``cost --by kind`` groups by.
        tensors: names in ``model.state_dict()``: weight first, then bias or buffers.
        stage: the coarse block the layer belongs to, such as ``layer1``; empty if the model has none.
    """

    name: str
    kind: str
    tensors: tuple[str, ...]
    stage: str = ""


@dataclass(frozen=True)
class Partition:
    """Every tensor of a model in exactly one place.

    Attributes:
        layers: what gets a gate, in forward order.
        norms: normalisation modules with their affine parameters and running statistics.
        head: tensor names of the classifier, which every task has for itself.
        shared: tensor names that stay those of the base (class tokens, position embeddings, ...).
    """

    layers: tuple[Layer, ...]
    norms: tuple[Layer, ...]
    head: tuple[str, ...]
    shared: tuple[str, ...] = ()

    def layer_tensors(self) -> tuple[str, ...]:
        """Names of all gated tensors."""
        return tuple(name for layer in self.layers for name in layer.tensors)

    def norm_tensors(self) -> tuple[str, ...]:
        """Names of all tensors of the norms, running statistics among them."""
        return tuple(name for norm in self.norms for name in norm.tensors)

    def check(self, model: nn.Module) -> Partition:
        """Return self if every parameter and persistent buffer of ``model`` is in exactly one place.

        Raises:
            PartitionError: naming what is missing, what is unknown and what is there twice.
        """
        placed = Counter([*self.layer_tensors(), *self.norm_tensors(), *self.head, *self.shared])
        owned = set(model.state_dict())
        problems = {
            "in no group": owned - set(placed),
            "not in the model": set(placed) - owned,
            "in more than one group": {name for name, count in placed.items() if count > 1},
        }
        found = [f"{what}: {', '.join(sorted(names))}" for what, names in problems.items() if names]
        if found:
            raise PartitionError(f"The partition of {type(model).__name__} is wrong. " + "; ".join(found))
        return self


class Architecture(ABC):
    """How a family of models is taken apart. Subclass ``generic.Generic`` unless its walk does not fit.

    Attributes:
        name: what ``add-base --plugin`` and the catalog call it.
        learning_rate: the default for AdamW when a task does not say ``--lr``.
        fallback: True for a plugin that is asked only when no other one matches.
    """

    name: ClassVar[str]
    learning_rate: ClassVar[float] = 1e-3
    fallback: ClassVar[bool] = False

    @abstractmethod
    def matches(self, model: nn.Module) -> bool:
        """Whether this plugin knows the model."""

    @abstractmethod
    def partition(self, model: nn.Module) -> Partition:
        """Take the model apart. The caller checks that the result is complete and disjoint."""
