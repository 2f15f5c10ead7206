"""How many values and bytes a model's tensors take, by the part they play."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from ...plugins.architectures import Layer, Partition
from ..records import LayerInfo, Params

WEIGHTS, NORMS, HEAD = "weights", "norms", "head"


def roles(partition: Partition) -> dict[str, str]:
    """``weights``, ``norms`` or ``head`` for every tensor; what no gate decides on counts as weights."""
    return {
        **dict.fromkeys(partition.shared, WEIGHTS),
        **dict.fromkeys(partition.layer_tensors(), WEIGHTS),
        **dict.fromkeys(partition.norm_tensors(), NORMS),
        **dict.fromkeys(partition.head, HEAD),
    }


def values(tensor: Tensor) -> int:
    """How many parameters a tensor counts as: its values, or none if it is an integer counter of batches."""
    return tensor.numel() if tensor.is_floating_point() else 0


def count(names: Iterable[str], tensors: Mapping[str, Tensor], part: Mapping[str, str]) -> Params:
    """Values in these tensors, by part."""
    totals = dict.fromkeys((WEIGHTS, NORMS, HEAD), 0)
    for name in names:
        totals[part[name]] += values(tensors[name])
    return Params(**totals)


def layer_infos(partition: Partition, tensors: Mapping[str, Tensor]) -> tuple[LayerInfo, ...]:
    """The layers and norms of a model as the catalog keeps them."""

    def info(layer: Layer) -> LayerInfo:
        return LayerInfo(layer.name, layer.kind, layer.stage, sum(values(tensors[name]) for name in layer.tensors))

    return tuple(info(layer) for layer in (*partition.layers, *partition.norms))


def parameters(model: nn.Module, without: Iterable[str] = ()) -> int:
    """Values in the model's parameters (no buffers), except those named."""
    left_out = frozenset(without)
    return sum(p.numel() for name, p in model.named_parameters() if name not in left_out)
