"""The contract of an architecture: which tensors of a model form its layers, norms and head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import PartitionError
from ..guard import Guarded
from .pieces import faults

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Architecture", "Layer", "Partition", "Stage"]


@dataclass(frozen=True)
class Layer:
    """Tensors, or rows of tensors, that are kept or dropped together.

    Attributes:
        name: the module's path in the model, such as ``layer1.0.conv1``; with a further part where several layers are
            fused into one module, such as ``blocks.0.attn.qkv.q``.
        kind: ``conv``, ``linear``, ``norm``, ... : what ``cost --by kind`` groups by.
        tensors: names in ``model.state_dict()``, weight first, then bias or buffers; ``name[0:64]`` for rows of one.
        stage: the coarse part of the model that the layer belongs to, such as ``layer1``; empty if it has none.
        block: the fine one, such as ``layer1.0``: the layers that one gate decides on with ``--granularity block``.
    """

    name: str
    kind: str
    tensors: tuple[str, ...]
    stage: str = ""
    block: str = ""


@dataclass(frozen=True)
class Partition:
    """Every tensor of a model in exactly one place.

    Attributes:
        layers: what gets a gate, in forward order as far as the plugin knows it.
        norms: normalisation modules with their affine parameters and running statistics.
        head: tensor names of the classifier, which every task has for itself.
        shared: tensor names that stay those of the base (class tokens, position embeddings, ...).
        aliases: further names of tensors that are above under their first one, where a model uses one in two places.
    """

    layers: tuple[Layer, ...]
    norms: tuple[Layer, ...]
    head: tuple[str, ...]
    shared: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    def layer_tensors(self) -> tuple[str, ...]:
        """Names of all gated tensors, or rows of them."""
        return tuple(name for layer in self.layers for name in layer.tensors)

    def norm_tensors(self) -> tuple[str, ...]:
        """Names of all tensors of the norms, running statistics among them."""
        return tuple(name for norm in self.norms for name in norm.tensors)

    def tensors(self) -> tuple[str, ...]:
        """Names of all that the model has, each tensor by its first name."""
        return (*self.layer_tensors(), *self.norm_tensors(), *self.head, *self.shared)

    def check(self, model: nn.Module) -> Partition:
        """Return self if every parameter and persistent buffer of ``model`` is in exactly one place.

        Raises:
            PartitionError: naming what is missing, what is unknown and what is there twice.
        """
        lengths = {name: len(tensor) if tensor.ndim else 1 for name, tensor in model.state_dict().items()}
        mistakes = [
            f"{what}: {', '.join(sorted(names))}"
            for what, names in faults((*self.tensors(), *self.aliases), lengths).items()
            if names
        ]
        if mistakes:
            raise PartitionError(f"The partition of {type(model).__name__} is wrong. " + "; ".join(mistakes))
        return self


@dataclass(frozen=True)
class Stage:
    """One link of the chain that a model is: ``run`` maps what the stage before gave to what the next one takes.

    Attributes:
        name: as in ``Layer.stage``; ``head`` for the last one, which ends in logits.
        run: a tensor to a tensor, by the model's own modules.
    """

    name: str
    run: Callable[[Tensor], Tensor]


class Architecture(Guarded, ABC):
    """How a family of models is taken apart. Subclass ``generic.Generic`` unless its walk does not fit.

    Attributes:
        name: what ``add-base --plugin`` and the catalog call it.
        learning_rate: the default for AdamW when a task does not say ``--lr``.
        fallback: True for a plugin that is asked only when no other one matches.
        models: names for ``add-base --model`` that ``build`` makes; empty if timm makes them.
    """

    kind: ClassVar[str] = "architecture"
    returns: ClassVar[dict[str, str]] = {
        "matches": "builtins:bool",
        "partition": ".architectures:Partition",
        "stages": "builtins:tuple",
        "build": "torch.nn:Module",
    }
    blames: ClassVar[dict[str, tuple[type[Exception], ...]]] = {"build": (TypeError, ValueError)}

    name: ClassVar[str]
    learning_rate: ClassVar[float] = 1e-3
    fallback: ClassVar[bool] = False
    models: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def matches(self, model: nn.Module) -> bool:
        """Whether this plugin knows the model."""

    @abstractmethod
    def partition(self, model: nn.Module) -> Partition:
        """Take the model apart. The caller checks that the result is complete and disjoint."""

    def stages(self, model: nn.Module) -> tuple[Stage, ...]:
        """The model as a chain of stages whose composition is its ``forward``, bit for bit, in eval mode.

        Empty if the plugin cannot say. Tasks that have the first stages in common can share their computation.
        """
        return ()

    def build(self, model: str, arguments: Mapping[str, Any]) -> nn.Module:
        """Make a model of a class that is not timm's: one of ``models``.

        Args:
            model: its name.
            arguments: of ``--model-arg``, and for a task's model ``num_classes``, the length of its logits.

        Returns:
            A module from ``(B, C, H, W)`` to logits ``(B, num_classes)``. If it has an attribute ``pretrained_cfg``,
            a dict with timm's keys, that says its input size, normalisation and the path of its classifier.
        """
        raise NotImplementedError(f"{self.name} builds no models")
