"""TAPS by direction: of each layer's delta, the directions that are worth their bytes.

A gate on a whole layer has to pay for all of it. Here every layer trains freely and slowly for a first share of the
run, then its delta is decomposed, ``D = sum_i sigma_i u_i v_i^T``. With ``g^2`` the layer's mean squared gradient, an
estimate of the curvature of the loss, leaving direction ``i`` out costs about ``g^2 sigma_i^2 / 2``; over all layers,
the directions that cost most to leave out for the bytes they take are kept, as many as the limits allow, with no more
than an eighth of one weight's values in factors before all others have as much. A layer without any is closed. What is
kept trains on, faster, as ``W0 + B A``, from ``B = U sqrt(S)`` and ``A = sqrt(S) V^T``: LoRA with ranks and a beginning
that the task has chosen.

A transformer spends most of a step on what no choice of weights can save. So in the last fifth of the run, where
learning rates are small, the first half of its layers rests, and the backward pass ends there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures import Partition
from ..architectures.pieces import tensor_of
from ..spec import Registrar, hookimpl
from . import (
    Adaptation,
    LayerState,
    Method,
    MethodSettings,
    Stored,
    head_and_norms,
    live_tensors,
)
from .low_rank import LowRankDelta, form_of, highest_rank, size_of
from .options import NormOptions
from .rank_allocation import Decomposition, allocate_ranks
from .reparametrised import Reparametrised, matrices

FIXED_AT, RESTS_AT = 0.05, 0.8  # shares of the run, the second of a transformer's
MEMORY = 0.95  # of the mean squared gradients over steps
SLOW, FAST = 1 / 3, 4.0  # learning rates of whole layers and of factors, against that of the head


class RankAdaptation(Reparametrised):
    """Trains whole layers, then the chosen directions of their deltas; the norms as told, and the head."""

    def __init__(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> None:
        always = head_and_norms(partition, settings)
        super().__init__(model, partition, (), always.union(partition.layer_tensors()), settings)
        self.head_and_norms = always
        self._never = self._held  # rows that do not train whatever is chosen
        self.form = form_of(settings)
        self.fixed = False
        self._takes_patches = hasattr(getattr(model, "patch_embed", None), "grid_size")
        self.late = False  # whether the first half rests
        self._new = False  # whether factors have come that the optimiser does not know
        self._layers = live_tensors(model, partition.layer_tensors())
        self.candidates = [live for live in self._layers.values() if live.owner.ndim > 1 and highest_rank(live)]
        self.curvature = torch.zeros(len(self.candidates), device=next(model.parameters()).device)
        self._values = self.curvature.new_tensor([live.base.numel() for live in self.candidates])
        self._nothing = self.curvature.new_zeros(1)

    @torch.no_grad()
    def before_step(self, lr: float) -> None:
        """Learn how much each weight matters, and decay weights towards the base."""
        if self.fixed:
            return
        gradients = [self._nothing if live.grad is None else live.grad for live in self.candidates]
        squares = torch.stack(torch._foreach_norm(gradients)).to(self.curvature).square() / self._values
        self.curvature.lerp_(
            squares.where(squares.isfinite(), self.curvature), 1 - MEMORY
        )  # fp16's first steps may overflow
        values, bases = [live.value for live in self.candidates], [live.base for live in self.candidates]
        torch._foreach_lerp_(values, bases, SLOW * lr * self.settings.weight_decay)

    def start_step(self, done: float) -> bool:
        if not self.fixed and done >= FIXED_AT:
            self._fix()
            return True
        if self.fixed and self._takes_patches and self.late != (done >= RESTS_AT):
            self.late = not self.late  # back again where a run is resumed for more epochs
            self._ask_for_gradients()
            return True
        return False

    @torch.no_grad()
    def _fix(self) -> None:
        """Keep the directions that are worth most, close the layers that have none, and train factors from now on."""
        decompositions = [Decomposition.of(live) for live in self.candidates]
        ranks = allocate_ranks(self.candidates, self.curvature.tolist(), decompositions, self._fits)
        self._train(
            {
                live.name: decompositions[index].factors(ranks[index])
                for index, live in enumerate(self.candidates)
                if ranks[index]
            }
        )

    def _fits(self, ranks: Counter[int]) -> bool:
        sizes = {self.candidates[index].name: rank for index, rank in ranks.items()}
        factors = {
            live.name: size_of(sizes[live.name], live, self.form) for live in self.candidates if live.name in sizes
        }
        chosen = Stored(self.head_and_norms.union(self._beside(sizes)), factors)
        return all(limit.holds(chosen) for limit in self.settings.limits)

    def _beside(self, open_weights: Iterable[str]) -> frozenset[str]:
        """What else is in the layers of these weights: biases, and weights too small for factors."""
        weights = set(open_weights)
        layers = [layer for layer in self.partition.layers if not weights.isdisjoint(layer.tensors)]
        named = {live.name for live in self.candidates}
        return frozenset(name for layer in layers for name in layer.tensors if name not in named)

    def _train(self, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """From now on these train, with what is beside them; all other layers are the base's again."""
        self.fixed = True
        self.units = tuple(
            LowRankDelta(live, *factors[live.name], self.form) for live in self.candidates if live.name in factors
        )
        self.always = self.head_and_norms.union(self._beside(factors))
        kept = self._opened()
        closed = {name: live for name, live in self._layers.items() if name not in kept}
        for live in closed.values():
            live.value.copy_(live.base)
        self._held = {**self._never, **{name: live for name, live in closed.items() if live.rows is not None}}
        self._ask_for_gradients()
        self._new = True
        self.write()

    def _opened(self) -> frozenset[str]:
        return self.always.union(unit.live.name for unit in self.units)

    def _ask_for_gradients(self) -> None:
        """Of what is kept, and late in the run of its second half"""
        moving = {tensor_of(name) for name in self._opened()}
        if self.late:
            moving -= first_half(self.model, self.partition)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in moving)

    def late_groups(self) -> list[dict[str, Any]]:
        if not self._new:
            return []
        self._new = False
        lr = FAST * self.settings.lr
        return [{**group, "lr": lr} for group in self.factor_groups() if group["params"]]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Weights decay towards the base in ``before_step``."""
        known = {id(live.owner) for live in self.candidates}
        groups = [
            {**group, "params": [p for p in group["params"] if id(p) not in known]}
            for group in Adaptation.parameter_groups(self)
        ]
        weights = {id(live.owner): live.owner for live in self.candidates}
        slow = {"params": list(weights.values()), "weight_decay": 0.0, "lr": SLOW * self.settings.lr}
        return [*groups, slow]

    def end_epoch(self, epoch: int) -> None:
        if epoch + 1 == self.settings.epochs and not self.fixed:
            self._fix()  # a run of so few steps that its share never came

    def settled(self, epoch: int) -> bool:
        return self.fixed

    def layer_states(self) -> tuple[LayerState, ...]:
        """A layer is open while directions of its delta are kept."""
        opened = self._opened()
        return tuple(LayerState(layer.name, not opened.isdisjoint(layer.tensors)) for layer in self.partition.layers)

    def begin_again(self) -> None:
        """Whole layers train again, from what they are."""
        self.fixed, self.late, self.units, self.always = False, False, (), self.trained
        self._held = self._never
        self._ask_for_gradients()

    def state_dict(self) -> dict[str, Any]:
        return {"fixed": self.fixed, "curvature": self.curvature, **super().state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.curvature.copy_(state["curvature"])
        if state["fixed"]:
            self._train({name: (pair["up"], pair["down"]) for name, pair in state["factors"].items()})


def first_half(model: nn.Module, partition: Partition) -> frozenset[str]:
    """Names of the parameters before the block that the middle one of the layers is in; none of the head.

    In the order of the model's modules, which is that of the forward pass in nearly all of timm.
    """
    second = partition.layers[(len(partition.layers) + 1) // 2 :] or partition.layers
    blocks = {layer.block for layer in second[:1]}
    later = {*second, *(layer for layer in (*partition.layers, *partition.norms) if layer.block in blocks)}
    train = {tensor_of(name) for layer in later for name in layer.tensors}.union(partition.head)
    return frozenset(takewhile(lambda name: name not in train, (name for name, _ in model.named_parameters())))


class TapsRank(Method):
    """Spends a budget on directions."""

    name = "taps-rank"
    summary = "low-rank updates with ranks chosen per layer to fit the budget, the norms and the head"
    options = NormOptions
    fits_limits = True
    needs_limits = True

    def least(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Stored:
        return Stored(head_and_norms(partition, settings))

    def most(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Stored:
        """Every layer at the highest rank that pays."""
        weights = [live for live in matrices(model, partition.layers) if highest_rank(live)]
        factors = {live.name: size_of(highest_rank(live), live, form_of(settings)) for live in weights}
        plain = head_and_norms(partition, settings).union(partition.layer_tensors())
        return Stored(plain - set(factors), factors)

    def adapt(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Adaptation:
        return RankAdaptation(model, partition, settings)


@hookimpl
def register_methods(registrar: Registrar) -> None:
    registrar.method(TapsRank())
