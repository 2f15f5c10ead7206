"""Norms only: the head, and the affine parameters and running statistics of every norm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..architectures import Partition
from ..spec import Registrar, hookimpl
from . import FixedSet, MethodSettings

if TYPE_CHECKING:
    from torch import nn


class NormOnly(FixedSet):
    """Trains the classifier and the norms: what TAPS stores with every gate closed."""

    name = "norm-only"
    summary = "the norms and the head"

    def tensors(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Iterable[str]:
        return (*partition.head, *partition.norm_tensors())


@hookimpl
def register_methods(registrar: Registrar) -> None:
    registrar.method(NormOnly())
