"""BitFit (Ben Zaken et al., ACL 2022, arXiv 2106.10199): the biases, those of the norms among them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..architectures import Partition
from ..architectures.pieces import tensor_of
from ..spec import Registrar, hookimpl
from . import FixedSet, MethodSettings

if TYPE_CHECKING:
    from torch import nn


class BitFit(FixedSet):
    """Trains every bias and the head; norms keep the base's statistics and scales."""

    name = "bitfit"
    summary = "the biases and the head"

    def tensors(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Iterable[str]:
        vectors = {name for name, parameter in model.named_parameters() if parameter.ndim == 1}
        body = (name for name in partition.tensors() if tensor_of(name) in vectors and name not in partition.head)
        return (*partition.head, *(name for name in body if tensor_of(name).endswith("bias")))


@hookimpl
def register_methods(registrar: Registrar) -> None:
    registrar.method(BitFit())
