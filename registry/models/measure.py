"""How many values a model's tensors have, and the part they play."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from ...plugins.architectures import Layer, Partition
from ...plugins.architectures.pieces import Pieces
from ..records import LayerInfo
from ..store.header import HEAD, NORMS, WEIGHTS


def roles(partition: Partition) -> dict[str, str]:
    """``weights``, ``norms`` or ``head`` for every tensor or rows of one; what no gate decides on counts as weights."""
    return {
        **dict.fromkeys(partition.shared, WEIGHTS),
        **dict.fromkeys(partition.layer_tensors(), WEIGHTS),
        **dict.fromkeys(partition.norm_tensors(), NORMS),
        **dict.fromkeys(partition.head, HEAD),
    }


def values(tensor: Tensor) -> int:
    """How many parameters a tensor counts as: its values, or none if it is an integer counter of batches."""
    return tensor.numel() if tensor.is_floating_point() else 0


def layer_infos(partition: Partition, tensors: Mapping[str, Tensor]) -> tuple[LayerInfo, ...]:
    """The layers and norms of a model as the catalog keeps them."""

    named = Pieces(tensors)

    def info(layer: Layer) -> LayerInfo:
        return LayerInfo(layer.name, layer.kind, layer.stage, sum(values(named[name]) for name in layer.tensors))

    return tuple(info(layer) for layer in (*partition.layers, *partition.norms))


def parameters(model: nn.Module, without: Iterable[str] = ()) -> int:
    """Values in the model's parameters (no buffers), except those named."""
    left_out = frozenset(without)
    return sum(p.numel() for name, p in model.named_parameters() if name not in left_out)
