"""Any timm model: gates every module that computes with a matrix or kernel of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from ..spec import Registrar, hookimpl
from . import Architecture, Layer, Partition
from .classifier import classifier_paths, is_inside
from .modules import is_norm, kind, matrices, own_tensors
from .pieces import rows, tensor_of

if TYPE_CHECKING:
    from torch import Tensor, nn


class Generic(Architecture):
    """The walk over all modules that other plugins refine.

    Override ``matches``, and ``stage``, ``block`` or ``layers_of`` where these do not fit. What no layer, norm or
    classifier takes is shared: tokens, position embeddings, layer scales, ...
    """

    name = "generic"
    fallback = True

    def matches(self, model: nn.Module) -> bool:
        return True

    def stage(self, path: str) -> str:
        """The coarse part of the model that the module at ``path`` is in: the first part of its path."""
        return path.partition(".")[0]

    def block(self, path: str) -> str:
        """The fine part: the path down to the last number before its end, ``stages.0.blocks.1``; else the stage."""
        parts = path.split(".")
        depths = [depth for depth, part in enumerate(parts[:-1], start=1) if part.isdigit()]
        return ".".join(parts[: depths[-1]]) if depths else self.stage(path)

    def layers_of(self, path: str, module: nn.Module) -> Iterator[Layer]:
        """The layers that a module forms, a norm being one of kind ``norm``; none for a mere container.

        They may own tensors of the module's children too: the first module that asks for a tensor has it.
        """
        if is_norm(module):
            yield self.layer(path, "norm", own_tensors(path, module))
        elif matrices(module):
            yield self.layer(path, kind(module), own_tensors(path, module))

    def layer(self, path: str, kind: str, tensors: Iterable[str], part: str = "") -> Layer:
        """A layer of the module at ``path``, or one of the parts of a fused one, in its stage and block."""
        return Layer(f"{path}.{part}" if part else path, kind, tuple(tensors), self.stage(path), self.block(path))

    def fused_thirds(self, path: str, linear: nn.Linear, biases: Mapping[str, str] | None = None) -> Iterator[Layer]:
        """Three layers for a linear whose ``3 * width`` rows give q, then k, then v.

        ``biases`` are names of those that the model keeps outside of it, by ``q``, ``k`` or ``v``.
        """
        width = linear.out_features // 3
        for index, part in enumerate("qkv"):
            thirds = [rows(name, index * width, (index + 1) * width) for name in own_tensors(path, linear)]
            outside = [name for other, name in (biases or {}).items() if other == part]
            yield self.layer(path, "linear", (*thirds, *outside), part)

    def partition(self, model: nn.Module) -> Partition:
        tensors = model.state_dict(keep_vars=True)
        heads = classifier_paths(model)
        again = further_names(tensors)
        head = tuple(name for name in tensors if is_inside(name, heads) and name not in again)
        layers = tuple(self._layers(model, heads, again))
        taken = set(head).union(again, *map(owned, layers))
        return Partition(
            layers=tuple(layer for layer in layers if layer.kind != "norm"),
            norms=tuple(layer for layer in layers if layer.kind == "norm"),
            head=head,
            shared=tuple(name for name in tensors if name not in taken),
            aliases=tuple(again),
        )

    def _layers(self, model: nn.Module, heads: tuple[str, ...], again: Collection[str]) -> Iterator[Layer]:
        """Layers and norms outside the heads, in the order of the modules, without further names of tensors."""
        taken = set(again)
        for path, module in model.named_modules():
            if not is_inside(path, heads):
                layers = [layer for layer in self.layers_of(path, module) if layer.tensors]
                yield from (layer for layer in layers if taken.isdisjoint(owned(layer)))
                taken.update(*map(owned, layers))


def owned(layer: Layer) -> set[str]:
    """Names of the tensors that a layer owns, or owns rows of."""
    return {tensor_of(piece) for piece in layer.tensors}


def further_names(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """All but the first name of each tensor that a model uses in several places."""
    first: dict[int, str] = {}
    return tuple(name for name, tensor in tensors.items() if first.setdefault(id(tensor), name) != name)


@hookimpl
def register_architectures(registrar: Registrar) -> None:
    registrar.architecture(Generic())
