"""A method's adaptation put through a few steps on noise, with the hooks in the order of the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..plugins.architectures import Partition
from ..plugins.architectures.pieces import Pieces
from ..plugins.methods import Method, MethodSettings, Size, Stored
from .models import CLASSES, noise

STEPS, BATCH = 2, 4


class Rehearsal:
    """One run on the CPU.

    Args:
        method: under test.
        model: with the base's weights, extended if the method does that.
        partition: of the model before it was extended.
        settings: that the method is told.
        pixels: height and width of images.
        scale: what the loss is multiplied by before the backward pass, as fp16 does.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        partition: Partition,
        settings: MethodSettings,
        pixels: int,
        scale: float = 1.0,
    ) -> None:
        self.model = model
        self.pixels = pixels
        self.scale = scale
        self.adaptation = method.adapt(model, partition, settings)
        self.steps = STEPS * settings.epochs
        groups = [group for group in self.adaptation.parameter_groups() if group["params"]]
        self.optimiser = torch.optim.AdamW(groups, lr=settings.lr)
        scores = self.adaptation.score_groups()
        self.score_optimiser = torch.optim.Adam(scores) if scores else None

    def epoch(self, number: int) -> None:
        """One epoch, counted from 0."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            self.adaptation.start_epoch(number)
            self.adaptation.train()
            for step in range(STEPS):
                self._step(STEPS * number + step)
            self.adaptation.end_epoch(number)
        self.model.eval()  # as validation does

    def _late_groups(self) -> None:
        for group in self.adaptation.late_groups():
            self.optimiser.add_param_group(group)

    def _step(self, number: int) -> None:
        if self.adaptation.start_step(number / self.steps):
            self._late_groups()
        labels = torch.arange(number, number + BATCH) % CLASSES
        loss = functional.cross_entropy(self.model(noise(BATCH, self.pixels, seed=number)), labels)
        torch.autograd.backward(loss * self.scale)
        self.adaptation.after_backward()
        for parameter in (parameter for group in self.optimiser.param_groups for parameter in group["params"]):
            if parameter.grad is not None:
                parameter.grad.div_(self.scale)
        self.adaptation.before_step(self.optimiser.param_groups[0]["lr"])
        self.optimiser.step()
        if self.score_optimiser is not None:
            self.score_optimiser.step()
            self.score_optimiser.zero_grad()
        self.optimiser.zero_grad()
        self.adaptation.after_step()

    def checkpoint(self) -> dict[str, Any]:
        """What the loop keeps of a run."""
        tensors = Pieces(self.model.state_dict())
        state = {
            "model": {name: tensors[name] for name in sorted(self.adaptation.kept())},
            "adaptation": self.adaptation.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scores": self.score_optimiser.state_dict() if self.score_optimiser else None,
        }
        kept: dict[str, Any] = as_kept(state, "state_dict()")
        return kept

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``checkpoint`` gave."""
        with torch.no_grad():
            pieces = Pieces(self.model.state_dict())
            for name, tensor in state["model"].items():
                pieces[name].copy_(tensor)
        self.adaptation.load_state_dict(state["adaptation"])
        self._late_groups()
        self.optimiser.load_state_dict(state["optimiser"])
        if self.score_optimiser is not None:
            self.score_optimiser.load_state_dict(state["scores"])


def as_kept(value: Any, where: str) -> Any:
    """A copy, as a checkpoint gives it back; anything that it cannot keep is an AssertionError."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {key: as_kept(member, f"{where}[{key!r}]") for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [as_kept(member, where) for member in value]
    assert value is None or isinstance(value, bool | int | float | str), (
        f"{where} holds a {type(value).__name__}; a checkpoint keeps tensors, numbers, strings, lists and dicts"
    )
    return value


def size_of(stored: Stored, tensors: Mapping[str, Tensor]) -> Size:
    """What this takes, in fp32: counters of batches are bytes, but no values."""
    named = Pieces(tensors)
    values = [named[name] for name in stored.tensors]
    return Size(
        sum(value.numel() for value in values if value.is_floating_point())
        + sum(size.params for size in stored.factors.values()),
        sum(value.nbytes for value in values) + sum(size.bytes for size in stored.factors.values()),
    )
