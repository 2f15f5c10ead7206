"""Norms only: the head, and the affine parameters and running statistics of every norm."""

from __future__ import annotations

from ..architectures import Partition
from ..spec import Registrar, hookimpl
from . import Method, MethodSettings


class NormOnly(Method):
    """Trains the classifier and the norms: what TAPS stores with every gate closed."""

    name = "norm-only"
    summary = "the norms and the head"

    def least(self, partition: Partition, settings: MethodSettings) -> frozenset[str]:
        return frozenset(partition.head) | frozenset(partition.norm_tensors())


@hookimpl
def register_methods(registrar: Registrar) -> None:
    registrar.method(NormOnly())
