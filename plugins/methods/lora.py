"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685), for linear layers and convolutions.

A weight of ``C_out`` rows, seen as a matrix ``(C_out, d)``, becomes ``W0 + (alpha / r) B A`` with ``B (C_out, r)`` and
``A (r, d)``; ``d`` is ``C_in`` of a linear layer and ``(C_in / groups) k^2`` of a convolution. For a convolution that
is one by ``A``, of the same kernel, stride, padding and dilation, followed by a 1x1 one by ``B``; with groups, every
group has the filters of ``A`` in common. ``r (C_out + d)`` values a layer.
"""

from __future__ import annotations

from math import prod, sqrt

import torch
from torch import Tensor, nn

from ..architectures import Partition
from ..spec import Registrar, hookimpl
from . import Live, MethodSettings
from .low_rank import LowRankDelta, form_of
from .options import LoraOptions
from .reparametrised import FixedUnits, Unit, units_of


class LoraDelta(LowRankDelta):
    """A delta that starts as 0: ``B`` is 0, ``A`` is drawn as torch's linear layers are.

    Args:
        live: the weight.
        settings: ``rank``, no more than the matrix has, ``alpha``, and the form of the factors.
        generator: on the CPU, that ``A`` is drawn from.
    """

    def __init__(self, live: Live, settings: MethodSettings, generator: torch.Generator) -> None:
        rows, columns = len(live.base), prod(live.base.shape[1:])
        rank, bound = min(settings.options.rank, rows, columns), 1 / sqrt(columns)
        self.scale = settings.options.alpha / rank
        down = torch.empty(rank, columns).uniform_(-bound, bound, generator=generator)
        super().__init__(live, torch.zeros(rows, rank), down, form_of(settings))

    def pair(self) -> tuple[Tensor, Tensor]:
        return self.scale * self.factors["up"], self.factors["down"]


class Lora(FixedUnits):
    """Trains a low-rank delta of every layer, the norms and the head."""

    name = "lora"
    summary = "a low-rank update of every layer, the norms and the head"
    options = LoraOptions

    def units(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> list[Unit]:
        generator = torch.Generator().manual_seed(settings.seed)
        return units_of(self.name, model, partition.layers, lambda live: LoraDelta(live, settings, generator))


@hookimpl
def register_methods(registrar: Registrar) -> None:
    registrar.method(Lora())
