"""SSF, scaling and shifting features (Lian et al., NeurIPS 2022, arXiv 2210.08823).

The output ``y`` of each layer becomes ``gamma * y + beta``, with ``C_out`` values each that are the task's own. That
folds: ``gamma * (W x + b) + beta`` is a layer with the rows of ``W`` scaled by ``gamma``, and a bias of the task's own.
After a norm, scale and shift are its affine parameters. So a task stores ``C_out`` scales a layer, the biases, the
norms and the head. A layer without a bias is followed by a norm, which shifts in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import taps_registry.plugins as taps


class ScaledRows(taps.Form):
    """``gamma * base``, a factor for each row of the base."""

    name = "scaled-rows"
    summary = "the base's weight, each row times a factor"

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        return by_row(taps.expect(parts, "scale", (len(base),), torch.float32), base)


def by_row(scale: Tensor, weight: Tensor) -> Tensor:
    """Each row of ``weight (C_out, …)`` times its value in ``scale (C_out)``: one rounding, alike on all machines."""
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))


class ScaledUnit(taps.Unit):
    """A weight that trains as the scales of its rows. Starts as the base's: all ones."""

    form = ScaledRows.name
    decays = False  # towards 0 would be away from the base

    def __init__(self, live: taps.Live) -> None:
        super().__init__(live, {"scale": torch.ones(len(live.base))})

    def weight(self) -> Tensor:
        return by_row(self.factors["scale"], self.live.base)

    def parts(self) -> dict[str, Tensor]:
        return dict(self.factors)

    def size(self) -> taps.Size:
        return taps.Size(len(self.live.base), 4 * len(self.live.base))


@dataclass(frozen=True)
class SsfOptions(taps.Options):
    """Of ``ssf``, by ``--method-arg``."""

    norms: str = taps.option("task", "Norms: the task's own, or the base's.", choices=("task", "frozen"))
    shift: bool = taps.option(True, "Whether biases train.")


class Ssf(taps.FixedUnits):
    """Trains the scales of every layer's rows, its bias, the norms and the head."""

    name = "ssf"
    summary = "a scale for each output of a layer, the biases, the norms and the head"
    options = SsfOptions

    def units(self, model: nn.Module, partition: taps.Partition, settings: taps.MethodSettings) -> list[taps.Unit]:
        return taps.units_of(self.name, model, partition.layers, ScaledUnit)

    def plain(self, partition: taps.Partition, settings: taps.MethodSettings) -> frozenset[str]:
        """Names of what trains as it is."""
        names = {name for layer in partition.layers for name in layer.tensors if "bias" in name.rpartition(".")[2]}
        return taps.head_and_norms(partition, settings).union(names if settings.options.shift else ())


@taps.hookimpl
def register_methods(registrar: taps.Registrar) -> None:
    registrar.method(Ssf())


@taps.hookimpl
def register_encodings(registrar: taps.Registrar) -> None:
    registrar.encoding(ScaledRows())
