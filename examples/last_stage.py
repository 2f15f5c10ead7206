"""A method that trains the layers of the last stage, and the head; norms stay the base's."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from taps_registry.plugins import FixedSet, MethodSettings, Partition, Registrar, hookimpl


class LastStage(FixedSet):
    """What ``hard-sharing --own 1`` trains, without the norms."""

    name = "last-stage"
    summary = "the layers of the last stage, and the head"

    def tensors(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Iterable[str]:
        last = partition.layers[-1].stage
        own = (layer.tensors for layer in partition.layers if layer.stage == last)
        return frozenset(partition.head).union(*own)


@hookimpl
def register_methods(registrar: Registrar) -> None:
    registrar.method(LastStage())
