"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685), for linear layers and convolutions.

A weight of ``C_out`` rows, seen as a matrix ``(C_out, d)``, becomes ``W0 + (alpha / r) B A`` with ``B (C_out, r)`` and
``A (r, d)``; ``d`` is ``C_in`` of a linear layer and ``(C_in / groups) k^2`` of a convolution. For a convolution that
is one by ``A``, of the same kernel, stride, padding and dilation, followed by a 1x1 one by ``B``; with groups, every
group has the filters of ``A`` in common. ``r (C_out + d)`` values a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod, sqrt

import torch
from torch import Tensor, nn

from ..architectures import Partition
from ..encodings import expect
from ..encodings.products import ThinProduct
from ..spec import Registrar, hookimpl
from . import Adaptation, Live, Method, MethodSettings, Size, Stored, head_and_norms, no_gated_norms
from .reparametrised import Product, Unit, stored, units_of, with_head_and_norms
from .shortcuts import Pair


class LowRank(ThinProduct):
    """``base + up @ down``, the base seen as a matrix of ``C_out`` rows."""

    name = "low-rank"
    summary = "the base's weight plus the product of two thin matrices"
    exact = True

    def parts(self, up: Tensor, down: Tensor) -> dict[str, Tensor]:
        return {"up": up, "down": down}

    def factors(self, parts: Mapping[str, Tensor], base: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = len(base), prod(base.shape[1:])
        rank = len(parts["down"]) if parts["down"].ndim else 0
        up = expect(parts, "up", (rows, rank), torch.float32)
        return up, expect(parts, "down", (rank, columns), torch.float32)


class LowRankUnit(Product):
    """A weight with a low-rank delta. It starts as the base's: ``B`` is 0, ``A`` is drawn as torch's linear layers are.

    Args:
        live: the weight.
        settings: ``rank``, no more than the matrix has, and ``alpha``.
        generator: on the CPU, that ``A`` is drawn from.
    """

    form = LowRank.name

    def __init__(self, live: Live, settings: MethodSettings, generator: torch.Generator) -> None:
        rows, columns = len(live.base), prod(live.base.shape[1:])
        self.rank = min(settings.rank, rows, columns)
        self.scale = settings.alpha / self.rank
        bound = 1 / sqrt(columns)
        down = torch.empty(self.rank, columns).uniform_(-bound, bound, generator=generator)
        super().__init__(live, {"down": down, "up": torch.zeros(rows, self.rank)})

    def pair(self) -> Pair:
        return self.scale * self.factors["up"], self.factors["down"]

    def parts(self) -> dict[str, Tensor]:
        return {"up": self.scale * self.factors["up"], "down": self.factors["down"]}

    def size(self) -> Size:
        values = self.rank * (len(self.live.base) + prod(self.live.base.shape[1:]))
        return Size(values, 4 * values)


def low_rank_units(method: str, model: nn.Module, partition: Partition, settings: MethodSettings) -> list[Unit]:
    """A low-rank unit for every matrix in the layers."""
    generator = torch.Generator().manual_seed(settings.seed)
    return units_of(method, model, partition.layers, lambda live: LowRankUnit(live, settings, generator))


class Lora(Method):
    """Trains a low-rank delta of every layer, the norms and the head."""

    name = "lora"
    summary = "a low-rank delta of every layer, the norms and the head"
    options = frozenset({"rank", "alpha", "norms"})

    def check(self, settings: MethodSettings) -> None:
        no_gated_norms(self, settings)

    def least(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Stored:
        units = low_rank_units(self.name, model, partition, settings)
        return stored(units, head_and_norms(partition, settings))

    def adapt(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Adaptation:
        units = low_rank_units(self.name, model, partition, settings)
        return with_head_and_norms(model, partition, units, settings)


@hookimpl
def register_methods(registrar: Registrar) -> None:
    registrar.method(Lora())


@hookimpl
def register_encodings(registrar: Registrar) -> None:
    registrar.encoding(LowRank())
