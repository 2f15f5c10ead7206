"""Piggyback (Mallya et al., ECCV 2018, arXiv 1801.06519): a binary mask over the base's weights.

``W = M W0`` with ``M = 1[m > 0.005]``, ``m`` starting at 0.01; gradients pass the step function straight through, so
``dLoss/dm = G W0``. Norms and biases stay the base's. 1 bit a weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures import Partition
from ..encodings import Form, expect
from ..encodings.packing import pack, packed_bytes, unpack
from ..spec import Registrar, hookimpl
from . import Live, MethodSettings, Size
from .reparametrised import FixedUnits, Reparametrised, Unit, units_of

INITIAL, THRESHOLD = 1e-2, 5e-3
PACE = 0.1  # of --lr: the paper trains masks with a tenth of the head's rate


class Masked(Form):
    """The base's weight where the mask is 1, and 0 elsewhere; eight weights a byte, the first in the lowest bit."""

    name = "masked"
    summary = "the base's weight under a binary mask"

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        packed = expect(parts, "mask", (packed_bytes(base.numel(), 1),), torch.uint8)
        mask = unpack(packed, 1, base.numel()).reshape(base.shape)
        return torch.where(mask.bool(), base, torch.zeros_like(base))


class MaskedUnit(Unit):
    """A weight under a mask. Starts as the base's: all ones."""

    form = Masked.name
    decays = False

    def __init__(self, live: Live) -> None:
        super().__init__(live, {"mask": torch.full(live.base.shape, INITIAL)})

    def mask(self) -> Tensor:
        return self.factors["mask"] > THRESHOLD

    def weight(self) -> Tensor:
        real = self.factors["mask"]
        straight_through = self.mask() + (real - real.detach())
        return self.live.base * straight_through

    def parts(self) -> dict[str, Tensor]:
        return {"mask": pack(self.mask(), 1)}

    def size(self) -> Size:
        bits = self.live.base.numel()
        return Size(ceil(bits / 32), packed_bytes(bits, 1))


class PiggybackAdaptation(Reparametrised):
    """Masks have a rate of their own."""

    def factor_groups(self) -> list[dict[str, Any]]:
        return [{**group, "lr": PACE * self.settings.lr} for group in super().factor_groups()]


class Piggyback(FixedUnits):
    """Trains a binary mask of every layer, and the head."""

    name = "piggyback"
    summary = "a binary mask over every layer, and the head"
    adaptation = PiggybackAdaptation

    def units(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> list[Unit]:
        return units_of(self.name, model, partition.layers, MaskedUnit)

    def plain(self, partition: Partition, settings: MethodSettings) -> Iterable[str]:
        return partition.head


@hookimpl
def register_methods(registrar: Registrar) -> None:
    registrar.method(Piggyback())


@hookimpl
def register_encodings(registrar: Registrar) -> None:
    registrar.encoding(Masked())
