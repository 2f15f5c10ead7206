"""Full fine-tuning: everything trains and everything is stored, the copy that the other methods avoid."""

from __future__ import annotations

from ..architectures import Partition
from ..spec import Registrar, hookimpl
from . import Method, MethodSettings


class Full(Method):
    """Trains every tensor of the model."""

    name = "full"
    summary = "every layer, the norms and the head"

    def least(self, partition: Partition, settings: MethodSettings) -> frozenset[str]:
        everything = (*partition.layer_tensors(), *partition.norm_tensors(), *partition.head, *partition.shared)
        return frozenset(everything)


@hookimpl
def register_methods(registrar: Registrar) -> None:
    registrar.method(Full())
