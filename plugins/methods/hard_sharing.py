"""Hard parameter sharing, one end of the model shared and the other the task's own.

Which end should be a task's own is a question of its cost: *Rethinking Hard-Parameter Sharing in Multi-Task Learning*
(arXiv 2107.11359) finds separate first stages better than separate last ones at equal cost when the rest is trained
jointly.
Here the shared end is the base's and frozen, norms included, so tasks can share its computation too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..architectures import Layer, Partition
from ..architectures.pieces import Pieces
from ..spec import Registrar, hookimpl
from . import FixedSet, MethodSettings
from .options import HardSharingOptions

if TYPE_CHECKING:
    from torch import nn


class HardSharing(FixedSet):
    """Trains the layers and norms of some stages, or of a share of the parameters, and the head."""

    name = "hard-sharing"
    summary = "the first or last stages with their norms, and the head"
    options = HardSharingOptions

    def check(self, settings: MethodSettings) -> None:
        amount(settings.options.own)

    def tensors(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Iterable[str]:
        layers = partition.layers if settings.options.share == "top" else partition.layers[::-1]
        number, is_share = amount(settings.options.own)
        own = _within(layers, model, number) if is_share else _stages(layers, int(number))
        norms = _norms(partition, own, own_end=settings.options.share == "bottom")
        return {name for layer in (*own, *norms) for name in layer.tensors}.union(partition.head)


def amount(own: str) -> tuple[float, bool]:
    """A number of stages, or a share of 1 and True. Raises ValueError if it is neither."""
    text = own.strip()
    try:
        if text.endswith("%") and 0 <= float(text[:-1]) <= 100:
            return float(text[:-1]) / 100, True
        if int(text) >= 0:
            return int(text), False
    except ValueError:
        pass
    raise ValueError(
        f"--own must be a number of stages, such as 2, or a percentage of the parameters, such as 10%, got {own!r}."
    )


def _norms(partition: Partition, own: tuple[Layer, ...], *, own_end: bool) -> list[Layer]:
    """The norms in blocks that are the task's own, in stages that are so as a whole, and the last one with the end."""
    blocks = {(layer.stage, layer.block) for layer in own}
    stages = {layer.stage for layer in own} - {layer.stage for layer in partition.layers if layer not in own}
    known = {layer.stage for layer in partition.layers}
    last = {partition.norms[-1].stage} - known if partition.norms and own and own_end else set()
    return [norm for norm in partition.norms if (norm.stage, norm.block) in blocks or norm.stage in stages | last]


def _stages(layers: Iterable[Layer], number: int) -> tuple[Layer, ...]:
    """The layers of the first so many stages."""
    listed = tuple(layers)
    stages = tuple(dict.fromkeys(layer.stage for layer in listed))
    return tuple(layer for layer in listed if layer.stage in stages[:number])


def _within(layers: Iterable[Layer], model: nn.Module, share: float) -> tuple[Layer, ...]:
    """The first layers that together have at most this share of all layers' values."""
    tensors = Pieces(model.state_dict())
    sizes = [(layer, sum(tensors[name].numel() for name in layer.tensors)) for layer in layers]
    left = share * sum(size for _, size in sizes)
    layers_within = []
    for layer, size in sizes:
        left -= size
        if left < 0:
            break
        layers_within.append(layer)
    return tuple(layers_within)


@hookimpl
def register_methods(registrar: Registrar) -> None:
    registrar.method(HardSharing())
