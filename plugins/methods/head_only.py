"""Head only: a linear probe of the base's features."""

from __future__ import annotations

from ..architectures import Partition
from ..spec import Registrar, hookimpl
from . import Method, MethodSettings


class HeadOnly(Method):
    """Trains the classifier; norms keep the base's statistics."""

    name = "head-only"
    summary = "the head"

    def least(self, partition: Partition, settings: MethodSettings) -> frozenset[str]:
        return frozenset(partition.head)


@hookimpl
def register_methods(registrar: Registrar) -> None:
    registrar.method(HeadOnly())
