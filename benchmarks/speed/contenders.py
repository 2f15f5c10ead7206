"""What takes steps: methods in the package's own loop, and the usual implementation of a gated delta in it."""

from __future__ import annotations

from typing import Any

import click

from taps_registry.plugins.methods.steering import Steering
from taps_registry.plugins.methods.taps_rank import RankAdaptation

from .jobs import BEYOND, CLASSES, Options, make_job


class Steps:
    """Steps of ``registry.training.loop.Trainer`` on one batch, of a run that could go on for long."""

    def __init__(self, options: Options, model: str, method: str) -> None:
        import torch

        from taps_registry.registry.data.transforms import batch
        from taps_registry.registry.training.loop import Trainer
        from taps_registry.registry.training.progress import Progress

        self.options = options
        self.trainer = Trainer(make_job(options, model, method), Progress(), lambda result: None)
        if options.compile:
            self.trainer.model = torch.compile(self.trainer.model)
        self.trainer.adaptation.start_epoch(0)
        self.trainer.adaptation.train()
        device = self.trainer.accelerator.device
        chance = torch.Generator().manual_seed(0)
        images = torch.randn(options.batch, 3, options.pixels, options.pixels, generator=chance)
        self.pixels = batch(images.unbind()).to(device)
        self.labels = torch.randint(0, CLASSES, (options.batch,), generator=chance).to(device)
        self.done = 0

    def __call__(self) -> float:
        """Take a step. Returns its seconds."""
        self._wait()
        begun = self.options.now()
        self.trainer._step(*divmod(self.done, self.trainer.steps), self.pixels, self.labels)
        self._wait()
        self.done += 1
        return self.options.now() - begun

    def warm_up(self) -> None:
        """Take the steps that do not count."""
        for _ in range(self.options.warmup):
            self()

    def fix(self) -> None:
        """Go on to where the loop fixes what is stored; the worth of layers is made up, so that it lies anywhere."""
        import torch

        chance = torch.Generator().manual_seed(0)
        if isinstance(ranks := self.trainer.adaptation, RankAdaptation):
            energy = torch.stack([(live.value - live.base).detach().square().sum() for live in ranks.candidates])
            ranks.curvature.copy_(torch.rand(len(energy), generator=chance).to(energy) / energy)
        elif isinstance(gates := getattr(self.trainer.adaptation, "scores", None), Steering):
            gates.worth.copy_(torch.rand(len(gates.worth), generator=chance))
        self._go_to(0.5)
        if not self.trainer.adaptation.settled(0):
            raise click.ClickException("The loop did not fix what is stored: `fix` of this file must follow it.")

    def near_end(self) -> bool:
        """Go on to the last part of the run. Returns whether fewer parameters train there."""
        before = self._asking()
        self._go_to(0.9)
        return self._asking() < before

    def _asking(self) -> int:
        return sum(parameter.requires_grad for parameter in self.trainer.raw.parameters())

    def _go_to(self, done: float) -> None:
        """Take a step where this share of the run lies behind."""
        self.done = round(done * BEYOND)
        self()

    def opened(self) -> str:
        """Which layers train, for the note."""
        states = self.trainer.adaptation.layer_states()
        share = self.trainer.footprint().params
        stored = (share.weights + share.norms) / self.trainer.job.backbone_params
        return f"{sum(state.open for state in states)} of {len(states)} layers open, {100 * stored:.1f} % of the base"

    def _wait(self) -> None:
        if self.options.on_gpu:
            import torch

            torch.cuda.synchronize()


class Composed(Steps):
    """The usual implementation: each layer computes ``W0 + 1[s >= tau] D`` in the forward pass, D and s train."""

    def __init__(self, options: Options, model: str) -> None:
        super().__init__(options, model, "full")
        _parametrise(self.trainer)


def _parametrise(trainer: Any) -> None:
    """Put deltas and scores under the weights of every layer, and optimisers and penalty around them."""
    import torch
    from torch import Tensor, nn
    from torch.nn.utils import parametrize

    from taps_registry.plugins.architectures.pieces import tensor_of
    from taps_registry.registry.training.optimisation import Optimisation

    class Step(torch.autograd.Function):
        """1 from the threshold upwards; gradients pass straight through."""

        @staticmethod
        def forward(context: Any, score: Tensor) -> Tensor:
            return (score >= 0.1).to(score.dtype)

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            return gradient

    class Sum(nn.Module):
        def __init__(self, base: Tensor) -> None:
            super().__init__()
            self.register_buffer("base", base.detach().clone())
            self.score = nn.Parameter(torch.full((), 0.15, device=base.device))

        def forward(self, delta: Tensor) -> Tensor:
            return self.base + Step.apply(self.score) * delta

        def right_inverse(self, weight: Tensor) -> Tensor:
            return torch.zeros_like(weight)

    sums = []
    for whole in dict.fromkeys(tensor_of(name) for name in trainer.job.partition.layer_tensors()):  # qkv is one here
        path, _, name = whole.rpartition(".")
        module = trainer.raw.get_submodule(path)
        made = Sum(getattr(module, name))
        parametrize.register_parametrization(module, name, made)
        sums.append(made)
    scores = [made.score for made in sums]
    known = {id(score) for score in scores}
    weights = [parameter for parameter in trainer.raw.parameters() if id(parameter) not in known]
    trainer.optimisation = Optimisation(
        [{"params": weights}], [{"params": scores, "lr": 0.01}], 1e-3, 10**6, trainer.accelerator
    )
    before_step = trainer.adaptation.before_step

    def penalised(lr: float) -> None:
        torch.autograd.backward(sum(score.abs() for score in scores) / len(scores))
        before_step(lr)

    trainer.adaptation.before_step = penalised
