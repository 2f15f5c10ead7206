"""Full fine-tuning: everything trains and everything is stored, the copy that the other methods avoid."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..architectures import Partition
from ..spec import Registrar, hookimpl
from . import FixedSet, MethodSettings

if TYPE_CHECKING:
    from torch import nn


class Full(FixedSet):
    """Trains every tensor of the model."""

    name = "full"
    summary = "every layer, the norms and the head"

    def tensors(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Iterable[str]:
        return partition.tensors()


@hookimpl
def register_methods(registrar: Registrar) -> None:
    registrar.method(Full())
