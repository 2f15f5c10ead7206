"""Any timm model: gates every module that owns a weight of two or more dimensions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..spec import Registrar, hookimpl
from . import Architecture, Layer, Partition

if TYPE_CHECKING:
    from torch import nn


class Generic(Architecture):
    """The walk that the other plugins refine by overriding ``matches`` and ``stage``."""

    name = "generic"
    fallback = True

    def matches(self, model: nn.Module) -> bool:
        return True

    def stage(self, path: str) -> str:
        """The stage of the module at ``path``; the first part of its path unless a plugin knows better."""
        return path.partition(".")[0]

    def partition(self, model: nn.Module) -> Partition:
        layers: list[Layer] = []
        norms: list[Layer] = []
        head: list[str] = []
        shared: list[str] = []
        heads = classifier_paths(model)
        for path, module in model.named_modules():
            tensors = tuple(own_tensors(path, module))
            if not tensors:
                continue
            if any(path == name or path.startswith(f"{name}.") for name in heads):
                head.extend(tensors)
            elif is_norm(module):
                norms.append(Layer(path, "norm", tensors, self.stage(path)))
            elif owns_matrix(module):
                layers.append(Layer(path, kind(module), tensors, self.stage(path)))
            else:
                shared.extend(tensors)
        return Partition(tuple(layers), tuple(norms), tuple(head), tuple(shared))


def classifier_paths(model: nn.Module) -> tuple[str, ...]:
    """Module paths of the classifier, as timm's own configuration of the model names them."""
    config = getattr(model, "pretrained_cfg", None) or {}
    names = config.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def own_tensors(path: str, module: nn.Module) -> Iterator[str]:
    """State-dict names of the parameters and persistent buffers that the module itself owns."""
    kept = module.state_dict()
    own = [*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))]
    return (f"{path}.{name}" if path else name for name in own if name in kept)


def is_norm(module: nn.Module) -> bool:
    """Whether the module normalises: torch's classes, timm's subclasses of them, and those named so."""
    return "norm" in type(module).__name__.lower() and not owns_matrix(module)


def owns_matrix(module: nn.Module) -> bool:
    """Whether the module owns a weight of two or more dimensions."""
    weight = getattr(module, "weight", None)
    return weight is not None and "weight" in module._parameters and weight.ndim >= 2


def kind(module: nn.Module) -> str:
    """``linear`` for matrices, ``conv`` for kernels over one or more spatial dimensions."""
    weight = module.get_parameter("weight")
    return "linear" if weight.ndim == 2 else "conv"


@hookimpl
def register_architectures(registrar: Registrar) -> None:
    registrar.architecture(Generic())
