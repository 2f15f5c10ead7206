"""Optimisers and learning rates: AdamW for weights, Adam for scores, a warm-up and a cosine for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...plugins.methods import Adaptation

WARMUP_SHARE = 0.05  # of all steps, in which the learning rate rises
LAST = 0.01  # of the learning rate, at the end


class Optimisation:
    """Trains the parameters of a run.

    Args:
        groups: of weights, as timm's and torch's optimisers take them.
        scores: groups of scores with their learning rate, which have an optimiser of their own; may be empty.
        lr: learning rate of weights at its highest.
        steps: of the whole run.
        accelerator: that the run trains with.

    Attributes:
        weights: the optimiser of weights, prepared by ``accelerator``.
        scores: the optimiser of scores; None if there are none.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        scores: Sequence[Mapping[str, Any]],
        lr: float,
        steps: int,
        accelerator: Any,
    ) -> None:
        from timm.optim import create_optimizer_v2

        fused = accelerator.scaler is None  # fp16's scaler cannot tell whether a fused step was skipped
        filled = [dict(group) for group in groups if group["params"]]
        self.accelerator = accelerator
        self.weights = accelerator.prepare(create_optimizer_v2(filled, opt="adamw", lr=lr, fused=fused))
        self.scores = torch.optim.Adam([dict(group) for group in scores]) if scores else None
        self.rates = lr, scores[0]["lr"] if scores else 0.0
        self.steps = steps
        self.warmup = max(1, round(WARMUP_SHARE * steps))
        self._make_schedules()

    def _make_schedules(self) -> None:
        from timm.scheduler import CosineLRScheduler

        self.schedules = [
            CosineLRScheduler(
                optimiser,
                t_initial=self.steps,
                lr_min=lr * LAST,
                warmup_t=self.warmup,
                warmup_lr_init=lr * 0.05,
                t_in_epochs=False,
            )
            for optimiser, lr in zip((self.weights.optimizer, self.scores), self.rates, strict=True)
            if optimiser is not None
        ]

    @property
    def lr(self) -> float:
        """The learning rate of weights now."""
        return float(self.weights.param_groups[0]["lr"])

    def set_rates(self, update: int) -> None:
        """Set all learning rates for a step, counted over all epochs."""
        for schedule in self.schedules:
            schedule.step_update(update)
        for group in self.weights.param_groups:
            if "since" in group:  # parameters that came while training have a warm-up of their own
                group["lr"] *= min(1.0, (update - round(group["since"] * self.steps) + 1) / self.warmup)

    def step(self) -> None:
        """Change parameters by their gradients, and forget those."""
        self.weights.step()
        if self.scores is not None:
            if not self.accelerator.optimizer_step_was_skipped:
                self.scores.step()
            self.scores.zero_grad()
        self.weights.zero_grad()

    def follow(self, adaptation: Adaptation, update: int) -> None:
        """Forget what was kept of parameters that train no more, and get to know those that are new.

        Args:
            adaptation: that has changed what trains.
            update: the step that comes, counted over all epochs.
        """
        for group in self.weights.param_groups:
            for parameter in group["params"]:
                if not parameter.requires_grad:
                    self.weights.optimizer.state.pop(parameter, None)
        for group in adaptation.late_groups():
            since = update / self.steps  # a share of the run: resumed in more processes, it has fewer steps
            self.weights.optimizer.add_param_group({**group, "since": since})
        self._make_schedules()

    def state_dict(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "optimiser": self.weights.state_dict(),
            "scores": self.scores.state_dict() if self.scores else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` gave; lists may stand for tuples, as in a checkpoint."""
        self.weights.load_state_dict(_with_tuples(state["optimiser"]))
        if self.scores is not None:
            self.scores.load_state_dict(_with_tuples(state["scores"]))
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def _with_tuples(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state as the optimiser gave it: its betas were a tuple."""
    groups = [{**group, "betas": tuple(group["betas"])} for group in state["param_groups"]]
    return {**state, "param_groups": groups}
