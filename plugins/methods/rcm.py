"""RCM, Reparameterised Convolutions for Multi-task learning (Kanakis et al., ECCV 2020, arXiv 2007.12540).

A layer's filters are a frozen bank; a 1x1 modulator ``M (C_out, C_out)`` of the task follows it: ``W = M W0``, the
filters seen as rows. Rows are weight-normed, ``M_i = g_i V_i / |V_i|``, and start as the identity, so that training
starts at the base. With groups the modulator is block-diagonal, ``C_out^2 / groups`` values. It costs more than the
layer itself where ``C_out >= C_in k^2`` (1x1 layers): there the weight is stored. Biases stay the base's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..architectures import Partition
from ..encodings import Form, expect
from ..encodings.exact_product import exact_product
from ..spec import Registrar, hookimpl
from . import Live, MethodSettings, Size
from .options import NormOptions
from .reparametrised import FixedUnits, Unit, groups_of, units_of


class Modulated(Form):
    """``modulator @ base``, the base seen as a matrix of ``C_out`` rows; one block of rows a group."""

    name = "modulated"
    summary = "the base's filters, mixed by a matrix"

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        groups = len(parts["modulator"]) if parts["modulator"].ndim else 0
        if groups == 0 or len(base) % groups:
            raise ValueError(f"{len(base)} filters are not in {groups} groups")
        rows = len(base) // groups
        modulator = expect(parts, "modulator", (groups, rows, rows), torch.float32)
        banks = base.reshape(groups, rows, -1)
        mixed = [exact_product(mixer, bank) for mixer, bank in zip(modulator, banks, strict=True)]
        return torch.stack(mixed).reshape(base.shape)


class ModulatedUnit(Unit):
    """A weight whose filters are mixed by a weight-normed matrix.

    Args:
        live: the weight.
        groups: of its convolution.
    """

    form = Modulated.name
    decays = False

    def __init__(self, live: Live, groups: int) -> None:
        self.shape = (groups, len(live.base) // groups, len(live.base) // groups)
        directions = torch.eye(self.shape[1]).expand(self.shape).contiguous()
        super().__init__(live, {"directions": directions, "gains": torch.ones(*self.shape[:2], 1)})

    def modulator(self) -> Tensor:
        """``(groups, rows, rows)``"""
        directions = self.factors["directions"]
        lengths: Tensor = torch.linalg.vector_norm(directions, dim=2, keepdim=True)
        return self.factors["gains"] * directions / lengths

    def weight(self) -> Tensor:
        banks = self.live.base.reshape(*self.shape[:2], -1)
        return (self.modulator() @ banks).reshape(self.live.base.shape)

    def parts(self) -> dict[str, Tensor]:
        return {"modulator": self.modulator()}

    def size(self) -> Size:
        values = self.shape[0] * self.shape[1] ** 2
        return Size(values, 4 * values)


class Rcm(FixedUnits):
    """Trains a modulator of every layer's filters, the norms and the head."""

    name = "rcm"
    summary = "a matrix per layer that mixes its filters, the norms and the head"
    options = NormOptions

    def units(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> list[Unit]:
        return units_of(self.name, model, partition.layers, lambda live: ModulatedUnit(live, groups_of(model, live)))


@hookimpl
def register_methods(registrar: Registrar) -> None:
    registrar.method(Rcm())


@hookimpl
def register_encodings(registrar: Registrar) -> None:
    registrar.encoding(Modulated())
