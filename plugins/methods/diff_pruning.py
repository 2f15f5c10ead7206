"""Diff pruning (Guo et al., ACL 2021, arXiv 2012.07463): a sparse difference from the base.

``W = W0 + z w`` with a gate for each weight and one for each tensor, ``z = z_weight z_tensor``, hard-concrete each ::

    s = sigmoid(log u - log(1 - u) + a)      u uniform in (0, 1); 0.5 when nothing is drawn
    z = min(1, max(0, s (r - l) + l))        l, r = -1.5, 1.5

The penalty is lambda times the expected share of open gates, ``sigmoid(a - log(-l / r))``. In the second half of the
run only the share ``--keep`` of the weights with the largest ``|z w|`` goes on training, without gates. Stored are
their values in effect and their positions, 16 bits each within runs of 65,536 weights: ``6 k`` bytes for ``k`` weights,
and 4 a run. A layer for which all ``n`` values take less, ``4 n`` bytes, is stored as these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures import Partition
from ..encodings import Form, expect
from ..spec import Registrar, hookimpl
from . import Adaptation, LayerState, Live, Method, MethodSettings, Size, Stored, head_and_norms
from .options import DiffPruningOptions
from .reparametrised import Reparametrised, Unit, matrices, units_of

LOW, HIGH = -1.5, 1.5
INITIAL_GATE = 5.0  # as the authors': nearly every gate is open at first
RUN = 65536  # positions in a run fit 16 bits
KEPT = "the weights that are kept"


class Sparse(Form):
    """The base's weight with some values replaced.

    ``values`` in the order of their positions, ``positions`` within runs of 65,536 weights as int16 (less 32,768), and
    ``counts``, how many there are in each run, as int32. Without positions, ``values`` are all there are.
    """

    name = "sparse"
    summary = "the base's weight with some values replaced"

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        if "positions" not in parts and "counts" not in parts:
            return expect(parts, "values", (base.numel(),), torch.float32).reshape(base.shape)
        runs = ceil(base.numel() / RUN)
        counts = expect(parts, "counts", (runs,), torch.int32)
        values = expect(parts, "values", (int(counts.sum()),), torch.float32)
        within = expect(parts, "positions", tuple(values.shape), torch.int16).long() + RUN // 2
        starts = torch.arange(runs).repeat_interleave(counts.long()) * RUN
        positions = starts + within
        if len(positions) and (int(positions.max()) >= base.numel() or bool((positions.diff() <= 0).any())):
            raise ValueError("positions are out of range or out of order")
        return base.flatten().index_copy(0, positions, values).reshape(base.shape)


def sparse_parts(value: Tensor, kept: Tensor) -> dict[str, Tensor]:
    """What ``Sparse`` reads: ``value`` where ``kept`` is True, or all of it where that takes less."""
    if is_dense(int(kept.sum()), kept.numel()):
        return {"values": value.flatten()}
    positions = kept.flatten().nonzero().squeeze(1)
    runs = ceil(kept.numel() / RUN)
    return {
        "values": value.flatten()[positions],
        "positions": (positions % RUN - RUN // 2).to(torch.int16),
        "counts": torch.bincount(positions // RUN, minlength=runs).to(torch.int32),
    }


def is_dense(kept: int, weights: int) -> bool:
    """Whether all values take fewer bytes than the kept ones with their positions."""
    return 4 * weights < _sparse_bytes(kept, weights)


def _sparse_bytes(kept: int, weights: int) -> int:
    return 6 * kept + 4 * ceil(weights / RUN)


class PrunedUnit(Unit):
    """A weight with a pruned difference. It starts as the base's: ``w`` is 0.

    Attributes:
        kept: which weights may differ, once that is decided.
        noise: what ``u`` came to for this step, by factor; empty when nothing is drawn.
    """

    form = Sparse.name
    decays = False

    def __init__(self, live: Live) -> None:
        gates = torch.full(live.base.shape, INITIAL_GATE)
        super().__init__(live, {"difference": torch.zeros(live.base.shape), "gates": gates, "gate": gates[:1].mean()})
        self.kept: Tensor | None = None
        self.refitted = False
        self.noise: dict[str, Tensor] = {}

    def difference(self) -> Tensor:
        """``z w``, or ``w`` itself once the gates are gone."""
        if self.refitted:
            return self.factors["difference"]
        return self.factors["difference"] * self._gate("gates") * self._gate("gate")

    def _gate(self, name: str) -> Tensor:
        opened = torch.sigmoid(self.noise.get(name, 0.0) + self.factors[name])
        return (opened * (HIGH - LOW) + LOW).clamp(0, 1)

    def draw(self, generator: torch.Generator) -> None:
        """Draw the gates of the next step."""
        for name in ("gates", "gate"):
            uniform = torch.rand(self.factors[name].shape, generator=generator).clamp(1e-6, 1 - 1e-6)
            self.noise[name] = torch.logit(uniform).to(self.factors[name])

    def expected_open(self) -> Tensor:
        """How many weights are expected to differ."""
        return torch.sigmoid(self.factors["gates"]).sum() * torch.sigmoid(self.factors["gate"])

    def weight(self) -> Tensor:
        difference = self.difference()
        return self.live.base + (difference if self.kept is None else difference * self.kept)

    def parts(self) -> dict[str, Tensor]:
        return sparse_parts(self.live.value, self._kept())

    def size(self) -> Size:
        kept, weights = int(self._kept().sum()), self.live.base.numel()
        return Size(weights, 4 * weights) if is_dense(kept, weights) else Size(kept, _sparse_bytes(kept, weights))

    @property
    def in_factors(self) -> bool:
        """Always: the form keeps all values where that takes less."""
        return True

    def _kept(self) -> Tensor:
        return torch.ones_like(self.live.base, dtype=torch.bool) if self.kept is None else self.kept


class DiffPruningAdaptation(Reparametrised):
    """Searches which weights are worth keeping in the first half of the run, refits them in the second."""

    def __init__(
        self,
        model: nn.Module,
        partition: Partition,
        units: Sequence[Unit],
        settings: MethodSettings,
    ) -> None:
        self.pruned = [unit for unit in units if isinstance(unit, PrunedUnit)]
        self.total = sum(unit.live.base.numel() for unit in self.pruned)
        self.generator = torch.Generator()
        super().__init__(model, partition, units, head_and_norms(partition, settings), settings)

    def start_epoch(self, epoch: int) -> None:
        if not self._searching(epoch):
            self._refit()
            return
        self.generator.manual_seed(self.settings.seed * 1_000_003 + epoch)
        for unit in self.pruned:
            unit.kept, unit.refitted = None, False
        self.after_step()

    def _searching(self, epoch: int) -> bool:
        return 2 * epoch < self.settings.epochs

    @torch.no_grad()
    def _refit(self) -> None:
        """Let the kept weights go on without gates."""
        for unit in self.pruned:
            if not unit.refitted:
                unit.factors["difference"].copy_(unit.difference())
                unit.refitted, unit.noise = True, {}
        self.write()

    @torch.no_grad()
    def end_epoch(self, epoch: int) -> None:
        """Compute with the weights that would be kept, and no others."""
        if self._searching(epoch):
            for unit in self.pruned:
                unit.noise = {}
            self._prune()
        self.write()

    def _prune(self) -> None:
        """Keep the largest differences over all layers."""
        sizes = [unit.difference().abs().flatten() for unit in self.pruned]
        largest = torch.cat(sizes).topk(kept_weights(self.settings.options.keep, self.total)).indices
        mask = torch.zeros(self.total, dtype=torch.bool, device=largest.device)
        mask[largest] = True
        for unit, kept in zip(self.pruned, torch.split(mask, [len(size) for size in sizes]), strict=True):
            unit.kept = kept.reshape(unit.live.base.shape)

    @torch.enable_grad()
    def before_step(self, lr: float) -> None:
        if self.pruned and not self.pruned[0].refitted:
            torch.autograd.backward(self.settings.options.sparsity * self._expected_share())

    def _expected_share(self) -> Tensor:
        return torch.stack([unit.expected_open() for unit in self.pruned]).sum() / self.total

    @torch.no_grad()
    def after_step(self) -> None:
        if not self.pruned[0].refitted:
            for unit in self.pruned:
                unit.draw(self.generator)
        self.write()

    def factor_groups(self) -> list[dict[str, Any]]:
        differences = [unit.factors["difference"] for unit in self.pruned]
        gates = [unit.factors[name] for unit in self.pruned for name in ("gates", "gate")]
        return [
            {"params": differences, "weight_decay": self.settings.weight_decay},
            {"params": gates, "weight_decay": 0.0, "lr": self.settings.options.score_lr},
        ]

    def penalty(self) -> float:
        if self.pruned[0].refitted:
            return 0.0
        with torch.no_grad():
            return float(self.settings.options.sparsity * self._expected_share())

    def settled(self, epoch: int) -> bool:
        return not self._searching(epoch) or epoch + 1 == self.settings.epochs

    def active(self) -> list[Unit]:
        return [unit for unit in self.pruned if unit.kept is None or bool(unit.kept.any())]

    def layer_states(self) -> tuple[LayerState, ...]:
        """A layer of which nothing is kept is the base's."""
        changed = {unit.live.name for unit in self.active()}
        return tuple(
            LayerState(layer.name, open=not changed.isdisjoint(layer.tensors)) for layer in self.partition.layers
        )

    def state_dict(self) -> dict[str, Any]:
        kept = {unit.live.name: unit.kept for unit in self.pruned if unit.kept is not None}
        return {**super().state_dict(), "kept": kept, "refitted": self.pruned[0].refitted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for unit in self.pruned:
            kept = state["kept"].get(unit.live.name)
            unit.kept = None if kept is None else kept.to(unit.live.base.device)
            unit.refitted = state["refitted"]
        super().load_state_dict(state)


def kept_weights(keep: float, total: int) -> int:
    """How many of so many weights a share comes to, at least 1."""
    return max(1, round(keep * total))


class DiffPruning(Method):
    """Trains a difference of every layer, keeps its largest values, the norms and the head."""

    name = "diff-pruning"
    summary = "the weights that changed most, the norms and the head"
    options = DiffPruningOptions

    def least(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Stored:
        """All that is kept fills layers that are then stored whole, 4 bytes a value."""
        kept, _ = self._kept(model, partition, settings)
        return Stored(head_and_norms(partition, settings), {KEPT: Size(kept, 4 * kept)})

    def most(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Stored:
        """Every layer keeps something; one is stored whole if that is smaller, at up to 6 / 4 values for one kept."""
        kept, runs = self._kept(model, partition, settings)
        every = sum(live.value.numel() for live in matrices(model, partition.layers))
        largest = Size(min(every, kept + kept // 2 + runs), min(4 * every, 6 * kept + 4 * runs))
        return Stored(head_and_norms(partition, settings), {KEPT: largest})

    def _kept(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> tuple[int, int]:
        """How many weights are kept, and how many runs of positions all layers have."""
        sizes = [live.value.numel() for live in matrices(model, partition.layers)]
        return kept_weights(settings.options.keep, sum(sizes)), sum(ceil(size / RUN) for size in sizes)

    def adapt(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Adaptation:
        units = units_of(self.name, model, partition.layers, PrunedUnit)
        return DiffPruningAdaptation(model, partition, units, settings)


@hookimpl
def register_methods(registrar: Registrar) -> None:
    registrar.method(DiffPruning())


@hookimpl
def register_encodings(registrar: Registrar) -> None:
    registrar.encoding(Sparse())
