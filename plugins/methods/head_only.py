"""Head only: a linear probe of the base's features."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..architectures import Partition
from ..spec import Registrar, hookimpl
from . import FixedSet, MethodSettings

if TYPE_CHECKING:
    from torch import nn


class HeadOnly(FixedSet):
    """Trains the classifier; norms keep the base's statistics."""

    name = "head-only"
    summary = "the head"

    def tensors(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Iterable[str]:
        return partition.head


@hookimpl
def register_methods(registrar: Registrar) -> None:
    registrar.method(HeadOnly())
