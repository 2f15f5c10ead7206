"""Gradients of low-rank factors by the short way, against those of autograd through the weight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from taps_registry.plugins.manager import PluginManager
from taps_registry.plugins.methods import MethodSettings, live_tensors
from taps_registry.plugins.methods.lora import Lora
from taps_registry.plugins.methods.reparametrised import Reparametrised
from taps_registry.plugins.methods.shortcuts import Shortcut, shortcut

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(40, 30), (5, 40)),
    "linear, of sequences": (lambda: nn.Linear(40, 30, bias=False), (3, 7, 40)),
    "1x1": (lambda: nn.Conv2d(24, 32, 1), (2, 24, 5, 5)),
    "3x3": (lambda: nn.Conv2d(16, 24, 3, padding=1), (2, 16, 6, 7)),
    "3x3, strided": (lambda: nn.Conv2d(16, 24, 3, stride=2, padding=1), (2, 16, 7, 8)),
    "3x3, dilated": (lambda: nn.Conv2d(16, 24, 3, dilation=2, padding=2), (2, 16, 9, 9)),
    "5x3, uneven": (lambda: nn.Conv2d(16, 24, (5, 3), stride=(1, 2), padding=(2, 0)), (2, 16, 9, 9)),
}


class Around(nn.Module):
    """A layer between parameters that train, as in a model."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.scale * x).square().mean()


def with_factors(
    model: nn.Module, name: str, rank: int
) -> tuple[Shortcut | None, tuple[nn.Parameter, nn.Parameter], Tensor]:
    """The shortcut of a weight with random factors in place, the factors, and the base's weight."""
    chance = torch.Generator().manual_seed(1)
    live = live_tensors(model, [name])[name]
    up = nn.Parameter(torch.randn(len(live.base), rank, generator=chance))
    down = nn.Parameter(torch.randn(rank, live.base[0].numel(), generator=chance))
    live.value.add_((up @ down).detach().reshape(live.base.shape))
    return shortcut(model, live, lambda: (up, down)), (up, down), live.base


def wanted(model: nn.Module, name: str, base: Tensor, pair: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, ...]:
    """Gradients by autograd, through ``W0 + U D``."""
    up, down = (factor.detach().clone().requires_grad_() for factor in pair)
    weight = base + (up @ down).reshape(base.shape)
    return torch.autograd.grad(torch.func.functional_call(model, {name: weight}, (x,)), (up, down))


@pytest.mark.parametrize(
    ("case", "onednn"), [*((case, True) for case in LAYERS), *((case, False) for case in LAYERS if "linear" in case)]
)
def test_both_ways_lead_to_the_same_gradients(case: str, onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape = LAYERS[case]
    monkeypatch.setattr(torch._C, "_has_mkldnn", onednn)
    torch.manual_seed(0)
    model, x = Around(make()), torch.randn(shape)
    way, pair, base = with_factors(model, "layer.weight", 2)
    assert way is not None
    model(x).backward()
    way.judge()
    assert way.trusted
    model.layer.weight.requires_grad_(False)
    for _ in range(2):  # on trial, and trusted
        for factor in pair:
            factor.grad = None
        if way.found is None:
            model(x).backward()
        assert way.pull_back()
        for factor, gradient in zip(pair, wanted(model, "layer.weight", base, pair, x), strict=True):
            torch.testing.assert_close(factor.grad, gradient, rtol=1e-4, atol=1e-5)


def test_gradients_of_several_calls_add_up() -> None:
    torch.manual_seed(0)
    model = Around(nn.Linear(40, 30))
    way, pair, base = with_factors(model, "layer.weight", 2)
    x = torch.randn(5, 40)
    (model(x) + model(2 * x)).backward()
    assert way is not None
    assert way.pull_back()
    both = zip(*(wanted(model, "layer.weight", base, pair, many * x) for many in (1, 2)), strict=True)
    for factor, (one, other) in zip(pair, both, strict=True):
        torch.testing.assert_close(factor.grad, one + other, rtol=1e-4, atol=1e-5)


def test_rows_of_a_fused_matrix_have_their_own() -> None:
    torch.manual_seed(0)
    model, x = Around(nn.Linear(24, 72)), torch.randn(2, 5, 24)
    way, pair, base = with_factors(model, "layer.weight[24:48]", 2)
    whole = model.layer.weight.detach().clone()
    assert way is not None
    model(x).backward()
    way.judge()
    assert way.trusted
    assert way.pull_back()
    up, down = (factor.detach().clone().requires_grad_() for factor in pair)
    weight = torch.cat([whole[:24], base + up @ down, whole[48:]])
    gradients = torch.autograd.grad(torch.func.functional_call(model, {"layer.weight": weight}, (x,)), (up, down))
    for factor, gradient in zip(pair, gradients, strict=True):
        torch.testing.assert_close(factor.grad, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", [0.0, float("inf")])
def test_a_step_that_says_nothing_does_not_end_the_trial(loss: float) -> None:
    torch.manual_seed(0)
    model, x = Around(nn.Linear(40, 30)), torch.randn(5, 40)
    way, _, _ = with_factors(model, "layer.weight", 2)
    assert way is not None
    (loss * model(x)).backward()
    way.judge()
    assert way.trusted is None
    model.zero_grad()
    way.pull_back()
    model(x).backward()
    way.judge()
    assert way.trusted


class UsedElsewhere(Around):
    """The weight counts twice, once without a call of its layer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + functional.linear(self.scale * x, self.layer.weight).sum()


class NeverCalled(Around):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.scale * x, self.layer.weight).sum()


class FromConstants(Around):
    """Nothing before the layer trains: its outputs would have no gradient but for its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).sum()


@pytest.mark.parametrize("model", [UsedElsewhere, NeverCalled, FromConstants])
def test_a_shortcut_that_leads_elsewhere_is_given_up(model: type[Around]) -> None:
    torch.manual_seed(0)
    made = model(nn.Linear(40, 30, bias=False))
    way, pair, _ = with_factors(made, "layer.weight", 2)
    assert way is not None
    made(torch.randn(5, 40)).backward()
    way.judge()
    assert way.trusted is False
    assert not way.pull_back()
    assert all(factor.grad is None for factor in pair)
    assert not made.layer._forward_hooks


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext"])
def test_a_models_factors_get_the_gradients_of_the_long_way(name: str) -> None:
    plugins = PluginManager()

    def gradients(short: bool) -> dict[tuple[str, str], Tensor]:
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=3).train()
        partition = plugins.partition(plugins.architecture_for(model), model)
        adaptation = Lora().adapt(model, partition, MethodSettings(epochs=1, lr=0.1, weight_decay=0.0, seed=0, rank=1))
        assert isinstance(adaptation, Reparametrised)
        for unit in adaptation.units:
            nn.init.normal_(unit.factors["up"], std=0.01)
        adaptation.write()
        if not short:
            adaptation.shortcuts = {}
        functional.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0])).backward()
        adaptation.after_backward()
        if short:
            taken = [unit for unit in adaptation.units if not unit.live.owner.requires_grad]
            assert len(taken) > len(adaptation.units) / 4
            assert adaptation.start_step(0.5), "the optimiser is told"
            assert not adaptation.start_step(0.6), "once"
        return {
            (unit.live.name, which): factor.grad
            for unit in adaptation.units
            for which, factor in unit.factors.items()
            if factor.grad is not None
        }

    short, long = gradients(short=True), gradients(short=False)
    assert short.keys() == long.keys()
    for key, gradient in long.items():
        torch.testing.assert_close(short[key], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight - self.weight.mean(), self.bias, padding=self.padding)


@pytest.mark.parametrize(
    ("layer", "rank"),
    [
        (lambda: nn.Conv2d(16, 16, 3, groups=4), 1),
        (lambda: nn.Conv2d(16, 16, 3, padding="same"), 1),
        (lambda: nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"), 1),
        (lambda: Standardised(16, 16, 3), 1),
        (lambda: nn.Linear(16, 16), 4),
        (lambda: nn.LayerNorm((4, 16)), 1),
    ],
    ids=["groups", "same", "reflect", "a forward of its own", "no shortcut", "no product"],
)
def test_other_layers_have_none(layer: Callable[[], nn.Module], rank: int) -> None:
    assert with_factors(Around(layer()), "layer.weight", rank)[0] is None
