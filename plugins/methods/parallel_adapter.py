"""Parallel residual adapters (Rebuffi et al., CVPR 2018, arXiv 1803.10082): ``norm_t(conv(x) + A_t x)``.

``A_t`` is a 1x1 convolution of the same stride and groups beside each convolution with a larger kernel. Added to the
centre of the kernel it is the same function, so it folds. ``C_out C_in / groups`` values a layer. Layers without a
spatial kernel have none: there an adapter would be the layer once more.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..architectures import Partition
from ..encodings import Form, expect
from ..spec import Registrar, hookimpl
from . import Live, MethodSettings, Size
from .options import NormOptions
from .reparametrised import FixedUnits, Unit, units_of


class Centre(Form):
    """The base's kernel with a matrix added to its central tap."""

    name = "centre"
    summary = "the base's kernel plus a matrix at its centre"

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        adapter = expect(parts, "adapter", tuple(base.shape[:2]), torch.float32)
        kernel = base.clone()
        kernel[centre(base)] += adapter
        return kernel


def centre(kernel: Tensor) -> tuple[slice | int, ...]:
    """The index of a kernel's central tap, for all channels: ``size // 2`` in each spatial dimension."""
    return (slice(None), slice(None), *(size // 2 for size in kernel.shape[2:]))


class CentreUnit(Unit):
    """A kernel with an adapter at its centre. Starts as the base's: the adapter is 0."""

    form = Centre.name

    def __init__(self, live: Live) -> None:
        super().__init__(live, {"adapter": torch.zeros(live.base.shape[:2])})

    def weight(self) -> Tensor:
        kernel = self.live.base.clone()
        kernel[centre(kernel)] += self.factors["adapter"]
        return kernel

    def parts(self) -> dict[str, Tensor]:
        return dict(self.factors)

    def size(self) -> Size:
        values = self.factors["adapter"].numel()
        return Size(values, 4 * values)


class ParallelAdapter(FixedUnits):
    """Trains an adapter beside each convolution with a spatial kernel, the norms and the head."""

    name = "parallel-adapter"
    summary = "a 1x1 convolution beside each spatial one, the norms and the head"
    options = NormOptions

    def units(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> list[Unit]:
        def make(live: Live) -> Unit | None:
            kernel = live.base.shape[2:]
            return CentreUnit(live) if kernel.numel() > 1 else None

        return units_of(self.name, model, partition.layers, make)


@hookimpl
def register_methods(registrar: Registrar) -> None:
    registrar.method(ParallelAdapter())


@hookimpl
def register_encodings(registrar: Registrar) -> None:
    registrar.encoding(Centre())
