"""Gradients by the short way, of low-rank factors and of weights, against those of autograd through the weight."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace

import pytest
import timm
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional

from taps_registry.plugins.manager import PluginManager
from taps_registry.plugins.methods import Method, MethodSettings, live_tensors, shortcuts
from taps_registry.plugins.methods.limits import Limit
from taps_registry.plugins.methods.lora import Lora
from taps_registry.plugins.methods.reparametrised import Reparametrised
from taps_registry.plugins.methods.sampling import Tokens, sample, step_among, step_over
from taps_registry.plugins.methods.shortcuts import OfFactors, of_factors, of_weight
from taps_registry.plugins.methods.taps import Taps, TapsAdaptation
from taps_registry.plugins.methods.taps_lora import TapsLora
from taps_registry.plugins.methods.taps_rank import RankAdaptation, TapsRank
from taps_registry.plugins.methods.thin import Piece, Seen, sums_to_zero
from taps_registry.registry.training.optimisation import Optimisation

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(40, 30), (5, 40)),
    "linear, of one vector": (lambda: nn.Linear(40, 30), (40,)),
    "linear, of sequences": (lambda: nn.Linear(40, 30, bias=False), (3, 7, 40)),
    "1x1": (lambda: nn.Conv2d(24, 32, 1), (2, 24, 5, 5)),
    "1x1, strided": (lambda: nn.Conv2d(24, 32, 1, stride=(3, 2)), (2, 24, 8, 9)),
    "1x1, padded": (lambda: nn.Conv2d(24, 32, 1, stride=2, padding=1), (2, 24, 5, 6)),
    "3x3": (lambda: nn.Conv2d(16, 24, 3, padding=1), (2, 16, 6, 7)),
    "3x3, strided": (lambda: nn.Conv2d(16, 24, 3, stride=2, padding=1), (2, 16, 7, 8)),
    "3x3, dilated": (lambda: nn.Conv2d(16, 24, 3, dilation=2, padding=2), (2, 16, 9, 9)),
    "5x3, uneven": (lambda: nn.Conv2d(16, 24, (5, 3), stride=(1, 2), padding=(2, 0)), (2, 16, 9, 9)),
    "4x2, side by side": (lambda: nn.Conv2d(16, 24, (4, 2), stride=(4, 2)), (2, 16, 15, 9)),
    "2x2, side by side, padded": (lambda: nn.Conv2d(16, 24, 2, stride=2, padding=1), (2, 16, 7, 8)),
    "2x2, as far apart as wide": (lambda: nn.Conv2d(16, 24, 2, stride=2, dilation=2), (2, 16, 9, 9)),
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
    model: nn.Module, name: str, rank: int, turn: Callable[[], int] | None = None
) -> tuple[OfFactors | None, tuple[nn.Parameter, nn.Parameter], Tensor]:
    """The shortcut of a weight with random factors in place, the factors, and the base's weight."""
    chance = torch.Generator().manual_seed(1)
    live = live_tensors(model, [name])[name]
    up = nn.Parameter(torch.randn(len(live.base), rank, generator=chance))
    down = nn.Parameter(torch.randn(rank, live.base[0].numel(), generator=chance))
    live.value.add_((up @ down).detach().reshape(live.base.shape))
    return of_factors(model, [(live, lambda: (up, down))], turn).get(name), (up, down), live.base


def wanted(model: nn.Module, name: str, base: Tensor, pair: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, ...]:
    """Gradients by autograd, through ``W0 + U D``."""
    up, down = (factor.detach().clone().requires_grad_() for factor in pair)
    weight = base + (up @ down).reshape(base.shape)
    return torch.autograd.grad(torch.func.functional_call(model, {name: weight}, (x,)), (up, down))


def on_trial_and_trusted(model: nn.Module, x: Tensor, turn: Callable[[], int] | None = None) -> OfFactors:
    """The shortcut of the layer's weight, which gave its factors the gradients of autograd both times."""
    way, pair, base = with_factors(model, "layer.weight", 2, turn)
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
    return way


@pytest.mark.parametrize("case", LAYERS)
def test_both_ways_lead_to_the_same_gradients(case: str) -> None:
    make, shape = LAYERS[case]
    torch.manual_seed(0)
    on_trial_and_trusted(Around(make()), torch.randn(shape))


PICTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(40, 30), (2, 11, 12, 40)),
    "1x1": (lambda: nn.Conv2d(24, 32, 1), (2, 24, 11, 12)),
    "1x1, strided": (lambda: nn.Conv2d(24, 32, 1, stride=(3, 2)), (2, 24, 33, 35)),
    "1x1, padded": (lambda: nn.Conv2d(24, 32, 1, padding=1), (2, 24, 11, 12)),
    "3x3": (lambda: nn.Conv2d(16, 24, 3, padding=1), (2, 16, 12, 13)),
    "3x3, without padding": (lambda: nn.Conv2d(16, 24, 3), (2, 16, 14, 15)),
    "3x3, strided": (lambda: nn.Conv2d(16, 24, 3, stride=2, padding=1), (2, 16, 23, 24)),
    "3x3, dilated": (lambda: nn.Conv2d(16, 24, 3, dilation=2, padding=2), (2, 16, 12, 12)),
    "5x3, uneven": (lambda: nn.Conv2d(16, 24, (5, 3), stride=(1, 2), padding=(2, 0)), (2, 16, 12, 25)),
    "7x7, strided": (lambda: nn.Conv2d(8, 24, 7, stride=2, padding=3), (2, 8, 25, 24)),
    "1x1, as wide as steps are far": (lambda: nn.Conv2d(24, 32, 1), (2, 24, 11, 15)),
    "3x3, as wide as steps are far": (lambda: nn.Conv2d(16, 24, 3, padding=1), (3, 16, 15, 10)),
    "1x1, of many positions": (lambda: nn.Conv2d(24, 32, 1), (2, 24, 29, 30)),
    "3x3, of many positions": (lambda: nn.Conv2d(16, 24, 3, padding=1), (2, 16, 32, 31)),
}


def turns_of(layer: nn.Module, x: Tensor) -> int:
    """After how many turns all positions have been seen."""
    height, width = layer(x).shape[1:3] if isinstance(layer, nn.Linear) else layer(x).shape[2:]
    return step_over(height * width, width)


@pytest.mark.parametrize("width", [12, 14, 15, 16, 20, 28, 32, 35, 40, 56, 64, 96, 112, 224])
def test_a_sample_has_a_hundred_positions_or_a_fifth_and_meets_every_column(width: int) -> None:
    step = step_over(width * width, width)
    assert min(width * width // 7, 85) <= width * width // step <= min(width * width // 5, 140)
    assert {place % width for place in range(0, width * step, step)} == set(range(width))


@pytest.mark.parametrize(("patches", "step"), [(16, 1), (127, 1), (128, 2), (191, 2), (192, 3), (196, 3), (1024, 3)])
def test_a_sample_has_at_least_64_patches_and_a_third(patches: int, step: int) -> None:
    assert step_among(patches) == step


@pytest.mark.parametrize("case", PICTURES)
def test_all_turns_of_large_pictures_tell_what_all_positions_do(case: str) -> None:
    make, shape = PICTURES[case]
    torch.manual_seed(0)
    model, x, turns = Around(make()), torch.randn(shape), count(5)
    way, pair, base = with_factors(model, "layer.weight", 2, lambda: next(turns))
    assert way is not None
    model(x).backward()
    way.judge()
    assert way.trusted, "it is judged by all positions"
    samples = []
    for turn in range(turns_of(model.layer, x)):
        for factor in pair:
            factor.grad = None
        if turn:
            model(x).backward()
        assert way.pull_back()
        samples.append([factor.grad for factor in pair])
    gradients = wanted(model, "layer.weight", base, pair, x)
    for found, gradient in zip(zip(*samples, strict=True), gradients, strict=True):
        torch.testing.assert_close(sum(found) / len(found), gradient, rtol=1e-4, atol=1e-5)
        assert all(float((one - gradient).norm() / gradient.norm()) > 0.01 for one in found), "one alone is not all"


@pytest.mark.parametrize(
    ("case", "shape"), [("1x1", (2, 24, 11, 11)), ("linear", (2, 300, 40)), ("1x1", (2, 24, 1, 300))]
)
def test_of_small_pictures_and_of_sequences_every_position_is_heard(case: str, shape: tuple[int, ...]) -> None:
    """Of sequences one has to know what their tokens are: one may be there for the class."""
    torch.manual_seed(0)
    model, x = Around(PICTURES[case][0]()), torch.randn(shape)
    way, pair, base = with_factors(model, "layer.weight", 2, lambda: 0)
    assert way is not None
    model(x).backward()
    assert way.pull_back()
    for factor, gradient in zip(pair, wanted(model, "layer.weight", base, pair, x), strict=True):
        torch.testing.assert_close(factor.grad, gradient, rtol=1e-4, atol=1e-5)


class First(Around):
    """A layer that images come to, which have no gradients."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.scale * self.layer(x)).square().mean()


def test_a_patch_embedding_hears_every_patch() -> None:
    torch.manual_seed(0)
    way = on_trial_and_trusted(First(nn.Conv2d(3, 24, 4, stride=4)), torch.randn(2, 3, 48, 52), lambda: 0)
    assert not way.thinned, "neighbours share no pixel"


def test_a_stem_hears_every_position() -> None:
    torch.manual_seed(0)
    way = on_trial_and_trusted(First(nn.Conv2d(8, 24, 3, padding=1)), torch.randn(2, 8, 12, 13), lambda: 0)
    assert not way.thinned
    model = First(nn.Conv2d(8, 24, 3, padding=1))
    way = of_weight(model, live_tensors(model, ["layer.weight"])["layer.weight"], lambda: 0)
    assert way is not None
    model(torch.randn(2, 8, 12, 13)).backward()
    way.judge()
    assert way.trusted is False


def test_a_first_layer_without_a_bias_that_trains_goes_the_long_way() -> None:
    """If its weight asked for no gradient, none would come there."""
    for bias in (False, True):
        model = First(nn.Conv2d(3, 24, 7, stride=2, padding=3, bias=bias))
        if bias:
            model.layer.bias.requires_grad_(False)
        way, *_ = with_factors(model, "layer.weight", 2)
        assert way is not None
        model(torch.randn(2, 3, 12, 12)).backward()
        way.judge()
        assert way.trusted is False
        assert not way.pull_back()


class OfTokens(Around):
    """A layer of a transformer that tells what its sequences are."""

    def __init__(self, own: int, height: int, width: int) -> None:
        super().__init__(nn.Linear(24, 72))
        self.patch_embed = nn.Module()
        self.patch_embed.grid_size = (height, width)
        self.num_prefix_tokens = own


@pytest.mark.parametrize("rows", ["", "[24:48]"])
@pytest.mark.parametrize(
    "tokens", [(1, 14, 14), (1, 11, 13), (0, 12, 12), (5, 12, 12), (5, 14, 14), (2, 14, 14), (2, 11, 13)]
)
def test_all_turns_of_the_patches_tell_what_all_tokens_do(tokens: tuple[int, int, int], rows: str) -> None:
    torch.manual_seed(0)
    model, turns = OfTokens(*tokens), iter(range(3, 9))
    own, height, width = tokens
    x = torch.randn(3, own + height * width, 24)
    way, pair, _ = with_factors(model, f"layer.weight{rows}", 2, lambda: next(turns))
    assert way is not None
    samples = []
    for _ in range(3 if height * width >= 192 else 2):
        model.zero_grad()
        for factor in pair:
            factor.grad = None
        model(x).backward()
        way.judge()
        assert way.trusted, "it is judged by all tokens"
        assert way.thinned
        assert way.pull_back()
        samples.append([factor.grad for factor in pair])
    whole = torch.autograd.grad(model(x), model.layer.weight)[0][way.factors[0][0]]
    gradients = torch.autograd.grad(pair[0] @ pair[1], pair, whole)
    for found, gradient in zip(zip(*samples, strict=True), gradients, strict=True):
        torch.testing.assert_close(sum(found) / len(found), gradient, rtol=1e-4, atol=1e-5)
        assert all(float((one - gradient).norm() / gradient.norm()) > 0.01 for one in found), "one alone is not all"


@pytest.mark.parametrize("turn", [0, 1, 2])
@pytest.mark.parametrize(
    ("own", "patches", "tokens"),
    [
        (1, 144, 145),
        (5, 144, 149),
        (1, 132, 133),
        (1, 196, 197),
        (5, 196, 201),
        (2, 143, 145),
        (1, 144, 144),
        (0, 144, 146),
    ],
    ids=[
        "the class's",
        "registers",
        "fewer patches",
        "a third",
        "a third with registers",
        "an odd number",
        "without the class's",
        "others",
    ],
)
def test_tokens_that_are_no_patches_are_heard_in_every_turn(own: int, patches: int, tokens: int, turn: int) -> None:
    """Were patches to say nothing, each turn would tell all; where there are other tokens, each is heard."""
    torch.manual_seed(0)
    model, x = OfTokens(own, 1, patches), torch.randn(3, tokens, 24)
    known = tokens == own + patches
    if known:
        x[:, own:] = 0
        nn.init.zeros_(model.layer.bias)
    way, pair, base = with_factors(model, "layer.weight", 2, lambda: turn)
    assert way is not None
    model(x).backward()
    assert way.pull_back()
    assert way.thinned is known
    for factor, gradient in zip(pair, wanted(model, "layer.weight", base, pair, x), strict=True):
        torch.testing.assert_close(factor.grad, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("vit_tiny_patch16_224", Tokens(1, 196)),
        ("deit_tiny_distilled_patch16_224", Tokens(2, 196)),
        ("vit_base_patch16_gap_224", Tokens(0, 196)),
        ("test_resnet", None),
    ],
)
def test_timms_transformers_tell_what_their_tokens_are(name: str, tokens: Tokens | None) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert Tokens.of(model) == tokens


def test_directions_of_a_vision_transformer_hear_a_part_of_the_patches() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3, img_size=192)
    partition = PluginManager().partition(PluginManager().architecture_for(model), model)
    adaptation = RankAdaptation(model, partition, MethodSettings(limits=(Limit(40_000, {}),)))
    for live in adaptation.candidates:
        live.value.add_(0.01 * torch.randn(live.base.shape))
    adaptation.start_step(1.0)
    backward(model, adaptation, 192)
    assert all(way.trusted for way in adaptation.shortcuts.values())
    thinned = {name for name, way in adaptation.shortcuts.items() if way.thinned}
    assert thinned == {name for name in adaptation.shortcuts if "blocks" in name}
    assert "patch_embed.proj.weight" in adaptation.shortcuts
    assert not model.patch_embed.proj.weight.requires_grad


def with_bias(model: nn.Module) -> OfFactors:
    way, *_ = with_factors(model, "layer.weight", 2)
    assert way is not None
    return way


@pytest.mark.parametrize("shape", [(40,), (5, 40), (3, 7, 40), (2, 11, 12, 40)])
def test_a_bias_has_its_gradient_beside_those_of_the_factors(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = Around(nn.Linear(40, 30)), torch.randn(shape)
    way = with_bias(model)
    assert way.bias is model.layer.bias
    found = []
    for _ in range(2):  # on trial, and trusted
        model.zero_grad()
        (model(x) + model(2 * x)).backward()
        way.judge()
        assert way.trusted
        assert way.pull_back()
        found.append((model.layer.bias.grad, model.scale.grad))
        model.layer.requires_grad_(False)
    way.close()
    model.layer.bias.requires_grad_(True)
    wanted = torch.autograd.grad(model(x) + model(2 * x), (model.layer.bias, model.scale))
    for gradients in found:
        torch.testing.assert_close(gradients, wanted)


@pytest.mark.parametrize(("shape", "turns"), [((2, 11, 12, 16), 5), ((2, 193, 16), 3)], ids=["a map", "tokens"])
def test_samples_count_for_all_positions(shape: tuple[int, ...], turns: int) -> None:
    layer, chance = nn.Linear(16, 24), torch.Generator().manual_seed(0)
    x, gradient = torch.randn(shape, generator=chance), torch.randn((*shape[:-1], 24), generator=chance)
    pieces = [
        Piece(slice(0, 8), torch.randn(8, 2), torch.randn(2, 16)),
        Piece(slice(8, 24), torch.randn(16, 3), torch.randn(3, 16)),
    ]
    with torch.no_grad():
        every = Seen.of(layer, x, gradient).products(pieces, bias=True)
        parts_of_all = [sample(layer, x, gradient, turn, Tokens(1, 192)) for turn in range(turns)]
        sampled = [part.seen(gradient).products(pieces, bias=True) for part in parts_of_all if part is not None]
    assert len(sampled) == turns
    assert [tuple(one.shape) for one in every] == [(8, 2), (2, 16), (8,), (16, 3), (3, 16), (16,)]
    torch.testing.assert_close(torch.cat((every[2], every[5])), gradient.reshape(-1, 24).sum(0))
    for whole, parts in zip(every, zip(*sampled, strict=True), strict=True):
        torch.testing.assert_close(sum(parts) / turns, whole, rtol=1e-4, atol=1e-4)
        assert not any(torch.allclose(part, whole, rtol=1e-2) for part in parts)


class BiasElsewhere(Around):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.layer.bias.sum()


@pytest.mark.parametrize("model", [BiasElsewhere, First], ids=["used elsewhere", "of the first layer"])
def test_a_bias_that_counts_elsewhere_keeps_its_own_gradient(model: type[Around]) -> None:
    """That of the first layer is what has gradients come to its weight's shortcut."""
    torch.manual_seed(0)
    made, x = model(nn.Linear(40, 30)), torch.randn(5, 40)
    way = with_bias(made)
    for _ in range(2):
        made.zero_grad()
        made(x).backward()
        way.judge()
        assert way.trusted
        assert way.bias is None
        assert way.pull_back()
        made.layer.weight.requires_grad_(False)
        assert torch.equal(made.layer.bias.grad, torch.autograd.grad(made(x), made.layer.bias)[0])
        way.found = None  # of the line before


def test_a_bias_that_does_not_train_or_is_a_convolutions_is_left_alone() -> None:
    still = Around(nn.Linear(40, 30))
    still.layer.bias.requires_grad_(False)
    assert with_bias(still).bias is None
    assert with_bias(Around(nn.Linear(40, 30, bias=False))).bias is None
    assert with_bias(Around(nn.Conv2d(16, 24, 3))).bias is None
    fused, *_ = with_factors(Around(nn.Linear(24, 72)), "layer.weight[24:48]", 2)
    assert fused is not None
    assert fused.bias is None, "its other rows train as well"


def test_rows_of_a_fused_weight_share_their_shortcut_and_its_bias() -> None:
    torch.manual_seed(0)
    model, x = Around(nn.Linear(24, 72)), torch.randn(2, 5, 24)
    lives = live_tensors(model, [f"layer.weight[{start}:{start + 24}]" for start in (0, 24, 48)])
    pairs = {name: (nn.Parameter(torch.randn(24, 2)), nn.Parameter(torch.randn(2, 24))) for name in lives}
    found = of_factors(model, [(live, lambda name=name: pairs[name]) for name, live in lives.items()])
    assert len(set(map(id, found.values()))) == 1 < len(found)
    way = next(iter(found.values()))
    assert way.bias is model.layer.bias
    model(x).backward()
    whole, bias = model.layer.weight.grad.clone(), model.layer.bias.grad.clone()
    way.judge()
    assert way.trusted
    assert all(other.pull_back() for other in found.values())
    torch.testing.assert_close(model.layer.bias.grad, bias)
    for name, live in lives.items():
        up, down = pairs[name]
        torch.testing.assert_close(up.grad, whole[live.rows] @ down.detach().T)
        torch.testing.assert_close(down.grad, up.detach().T @ whole[live.rows])


def test_a_patch_embedding_asks_for_no_gradient_of_its_own() -> None:
    """Neither images nor its parameters require one, and still its factors and its bias train."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3)
    partition = PluginManager().partition(PluginManager().architecture_for(model), model)
    adaptation = RankAdaptation(model, partition, MethodSettings(limits=(Limit(40_000, {}),)))
    for live in adaptation.candidates:
        live.value.add_(0.01 * torch.randn(live.base.shape))
    adaptation.start_step(1.0)
    (unit,) = (unit for unit in adaptation.units if unit.live.name.startswith("patch_embed"))
    embedding, found = model.patch_embed.proj, []
    for _ in range(2):
        backward(model, adaptation, 160)
        found.append([embedding.bias.grad, *(factor.grad for factor in unit.factors.values())])
        assert not embedding.weight.requires_grad
        assert not embedding.bias.requires_grad
    for one, other in zip(*found, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, other)
    with torch.inference_mode():
        assert not embedding(torch.randn(1, 3, 160, 160)).requires_grad


def test_biases_that_rest_train_on_with_what_the_optimiser_kept_of_them() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3)
    partition = PluginManager().partition(PluginManager().architecture_for(model), model)
    adaptation = RankAdaptation(model, partition, MethodSettings(limits=(Limit(40_000, {}),)))
    optimisation = Optimisation(adaptation.parameter_groups(), [], 1e-3, 0.0, 10, Accelerator(cpu=True))
    biases = {name: bias for name, bias in model.named_parameters() if "blocks" in name and name.endswith("fc1.bias")}
    assert biases
    for step in range(4):
        if adaptation.start_step(0.0 if step == 0 else 0.5):
            optimisation.follow(adaptation, step)
        before = {name: bias.detach().clone() for name, bias in biases.items()}
        functional.cross_entropy(model(torch.randn(2, 3, 160, 160)), torch.tensor([0, 1])).backward()
        adaptation.after_backward()
        adaptation.before_step(1e-3)
        optimisation.step()
        adaptation.after_step()
        assert not any(torch.equal(bias, before[name]) for name, bias in biases.items())
        assert {bias.requires_grad for bias in biases.values()} == {step == 0}
        states = [optimisation.weights.optimizer.state[bias] for bias in biases.values()]
        assert [int(state["step"]) for state in states] == [step + 1] * len(states)
    weights = [unit.live.owner for unit in adaptation.units]
    assert not any(weight in optimisation.weights.optimizer.state for weight in weights), "nothing is kept of these"
    adaptation.begin_again()
    assert all(bias.requires_grad for bias in biases.values())
    assert not any(module._forward_hooks for module in model.modules())


def of_all_positions(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the layer's weight and of what is before it."""
    return torch.autograd.grad(model(x), (model.layer.weight, model.scale))


@pytest.mark.parametrize("case", PICTURES)
def test_all_turns_tell_the_gradient_of_a_weight(case: str) -> None:
    make, shape = PICTURES[case]
    torch.manual_seed(0)
    model, x, turns = Around(make()), torch.randn(shape), count(6)
    weight = model.layer.weight
    gradient, before = of_all_positions(model, x)
    way = of_weight(model, live_tensors(model, ["layer.weight"])["layer.weight"], lambda: next(turns))
    assert way is not None
    samples = []
    for _ in range(turns_of(model.layer, x)):
        model.zero_grad()
        model(x).backward()
        way.judge()
        assert way.trusted, "it is judged by all positions"
        assert way.pull_back()
        weight.requires_grad_(False)
        samples.append(weight.grad)
        torch.testing.assert_close(model.scale.grad, before)
    torch.testing.assert_close(sum(samples) / len(samples), gradient, rtol=1e-4, atol=1e-5)
    assert all(float((one - gradient).norm() / gradient.norm()) > 0.01 for one in samples), "one alone is not all"


class Normed(Around):
    """A layer whose outputs are normalised, of inputs far from zero."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.norm = nn.BatchNorm2d(24)
        self.head = nn.Conv2d(24, 24, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layer(10 + self.scale * x))).square().mean()


@pytest.mark.parametrize("overflown", [float("inf"), float("nan")])
def test_gradients_that_overflow_say_nothing_of_their_sum(overflown: float) -> None:
    """With fp16 the first steps may, and layers are on trial for longer."""
    gradient = torch.randn(2, 3, 4, 4)
    assert not sums_to_zero(gradient, 1)
    assert sums_to_zero(gradient - gradient.mean((0, 2, 3), keepdim=True), 1)
    assert not sums_to_zero(gradient - gradient.mean((0, 1, 2), keepdim=True), 1)
    gradient[0, 0] = overflown
    assert sums_to_zero(gradient, 1)


@pytest.mark.parametrize("kind", ["factors", "weight"])
@pytest.mark.parametrize("size", [1, 3])
def test_before_batch_norm_samples_are_centred(monkeypatch: pytest.MonkeyPatch, size: int, kind: str) -> None:
    """Gradients of all positions sum to zero there, those of a sample do not."""

    def off(training: bool, centred: bool) -> list[float]:
        """How far five turns are from all positions, on average, against the size of each gradient."""
        torch.manual_seed(0)
        model, x = Normed(nn.Conv2d(16, 24, size, padding=size // 2, bias=False)), torch.randn(4, 16, 14, 14)
        model.norm.train(training)
        model.norm.momentum = 0.0
        turns = count()
        if kind == "factors":
            way, pair, base = with_factors(model, "layer.weight", 2, lambda: next(turns))
        else:
            way = of_weight(model, live_tensors(model, ["layer.weight"])["layer.weight"], lambda: next(turns))
        assert way is not None
        found = []
        for _ in range(5):
            model.zero_grad()
            model(x).backward()
            way.judge()
            assert way.trusted
            assert way.balanced is centred
            found.append(way.found)
            way.found = None
        way.close()
        whole = of_all_positions(model, x)[0]
        gradients = wanted(model, "layer.weight", base, pair, x) if kind == "factors" else (whole,)
        distances = []
        for turns_of_one, exact in zip(zip(*found, strict=True), gradients, strict=True):
            all_turns = torch.stack(turns_of_one)
            assert float((all_turns.mean(0) - exact).norm() / exact.norm()) < (0.1 if centred else 1e-3)
            distances.append(float(torch.stack([(one - exact).norm() for one in all_turns]).mean() / exact.norm()))
        return distances

    closer = off(training=True, centred=True)
    off(training=False, centred=False)
    monkeypatch.setattr(shortcuts, "sums_to_zero", lambda gradient, channels: False)
    for near, far in zip(closer, off(training=True, centred=False), strict=True):
        assert near < 0.7 * far


@pytest.mark.parametrize(
    ("case", "shape"), [("1x1", (2, 24, 11, 11)), ("linear", (2, 300, 40)), ("1x1", (2, 24, 1, 300))]
)
def test_a_weight_that_hears_every_position_keeps_its_own_gradient(case: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = Around(PICTURES[case][0]()), torch.randn(shape)
    way = of_weight(model, live_tensors(model, ["layer.weight"])["layer.weight"], lambda: 0)
    assert way is not None
    model(x).backward()
    way.judge()
    assert way.trusted is False
    assert not way.pull_back()
    assert torch.equal(model.layer.weight.grad, of_all_positions(model, x)[0])
    assert not model.layer._forward_hooks


def test_the_gradient_of_a_weight_lies_in_memory_as_the_weight() -> None:
    torch.manual_seed(0)
    model = Around(nn.Conv2d(16, 24, 3, padding=1)).to(memory_format=torch.channels_last)
    way = of_weight(model, live_tensors(model, ["layer.weight"])["layer.weight"], lambda: 0)
    assert way is not None
    model(torch.randn(2, 16, 12, 13)).backward()
    assert way.pull_back()
    assert model.layer.weight.grad.stride() == model.layer.weight.stride() == (144, 1, 48, 16)


def test_rows_of_a_weight_have_no_shortcut() -> None:
    model = Around(nn.Linear(24, 72))
    assert of_weight(model, live_tensors(model, ["layer.weight[24:48]"])["layer.weight[24:48]"], lambda: 0) is None


def test_where_several_processes_train_no_weight_has_a_shortcut() -> None:
    """They average the gradients of weights, and would each go on with factors of their own."""
    model = Around(nn.Linear(40, 30))
    live = live_tensors(model, ["layer.weight"])["layer.weight"]
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert with_factors(model, "layer.weight", 2)[0] is None
        assert of_weight(model, live, lambda: 0) is None
    finally:
        torch.distributed.destroy_process_group()
    assert with_factors(model, "layer.weight", 2)[0] is not None
    assert of_weight(model, live, lambda: 0) is not None


def test_weights_of_open_layers_rest_where_pictures_are_large_and_train_all_the_same() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    partition = PluginManager().partition(PluginManager().architecture_for(model), model)
    most = sum(parameter.numel() for parameter in model.parameters()) // 2
    adaptation = Taps().adapt(model, partition, MethodSettings(limits=(Limit(most, {}),)))
    assert isinstance(adaptation, TapsAdaptation)
    for gate in adaptation.gates:
        for live in gate.trainable():
            live.value.add_(0.01 * torch.randn(live.base.shape))
    adaptation.scores.worth.copy_(torch.arange(len(adaptation.gates), 0, -1))
    assert adaptation.start_step(1.0), "gates are fixed"
    functional.cross_entropy(model(torch.randn(2, 3, 96, 96)), torch.tensor([0, 1])).backward()
    adaptation.after_backward()
    every = [live for gate in adaptation.gates for live in gate.trainable()]
    states = {layer.name: layer.open for layer in adaptation.layer_states()}
    rested = [
        live for live in every if any(way.trusted and way.module.weight is live.owner for way in adaptation.shortcuts)
    ]
    assert rested, "stem and first stage have 24 x 24 positions"
    assert all(states[live.name.removesuffix(".weight")] and not live.owner.requires_grad for live in rested)
    assert all(live.grad is not None for live in rested)
    own = [gate for gate in adaptation.gates if gate.open and not set(gate.trainable()).intersection(rested)]
    assert own, "the last stages' pictures are small"
    assert all(live.owner.requires_grad and live.grad is not None for gate in own for live in gate.trainable())
    before = {live.name: live.value.clone() for live in rested}
    adaptation.before_step(0.5)
    assert all(not torch.equal(live.value, before[live.name]) for live in rested), "they decay towards the base"
    adaptation.begin_again()
    assert not adaptation.shortcuts
    assert all(live.owner.requires_grad for gate in adaptation.gates for live in gate.trainable())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("method", [Lora(), TapsRank()])
def test_a_device_that_has_weights_gradients_fast_takes_no_shortcuts(
    name: str, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortcuts, "pays_on", lambda device: False)
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3)
    partition = PluginManager().partition(PluginManager().architecture_for(model), model)
    adaptation = method.adapt(model, partition, MethodSettings(rank=2, limits=(Limit(60_000, {}),)))
    assert isinstance(adaptation, Reparametrised)
    if isinstance(adaptation, RankAdaptation):
        adaptation.curvature.fill_(1)
        for live in adaptation.candidates:
            live.value.add_(0.01 * torch.randn(live.base.shape))
    adaptation.start_step(1.0)
    for unit in adaptation.units:
        nn.init.normal_(unit.factors["up"], std=0.01)
    adaptation.write()
    found = backward(model, adaptation, 160)
    assert not adaptation.shortcuts
    assert not any(module._forward_hooks for module in model.modules())
    owners = {id(unit.live.owner): unit.live.owner for unit in adaptation.units}
    pictures = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    loss = functional.cross_entropy(model(pictures), torch.tensor([0, 1]))
    wholes = dict(zip(owners, torch.autograd.grad(loss, list(owners.values())), strict=True))
    wanted = []
    for unit in adaptation.units:
        whole, rows = wholes[id(unit.live.owner)], unit.live.rows
        wanted += torch.autograd.grad(
            unit.weight(), list(unit.factors.values()), whole if rows is None else whole[rows]
        )
    assert len(found) == len(wanted) > 20
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))
    unit.live.owner.grad = wholes[id(unit.live.owner)]
    unit.pull_back()
    torch.testing.assert_close(unit.factors["down"].grad, found[-1] + wanted[-1], msg="gradients add up")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_shortcuts_are_taken_on_cpus(device: str) -> None:
    assert shortcuts.pays_on(torch.device(device)) is (device == "cpu")


@pytest.mark.parametrize(("method", "thrifty"), [(Lora(), False), (TapsLora(), False), (TapsRank(), True)])
def test_only_directions_do_with_a_part(method: Method, thrifty: bool) -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    partition = PluginManager().partition(PluginManager().architecture_for(model), model)
    adaptation = method.adapt(model, partition, MethodSettings(rank=1, limits=(Limit(20_000, {}),)))
    assert isinstance(adaptation, Reparametrised)
    adaptation.start_step(1.0)
    ways = adaptation.shortcuts.values()
    assert ways
    for step in range(2):
        assert {way.turn and way.turn() for way in ways} == {step if thrifty else None}
        backward(model, adaptation)


def test_a_resumed_run_hears_the_positions_whose_turn_it_is() -> None:
    def fresh() -> tuple[nn.Module, RankAdaptation]:
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=3)
        partition = PluginManager().partition(PluginManager().architecture_for(model), model)
        return model, RankAdaptation(model, partition, MethodSettings(limits=(Limit(20_000, {}),)))

    model, adaptation = fresh()
    for live in adaptation.candidates:
        live.value.add_(0.01 * torch.randn(live.base.shape))
    adaptation.start_step(1.0)
    states, found = [adaptation.state_dict()], []
    for _ in range(2):
        found.append(backward(model, adaptation))
        states.append(adaptation.state_dict())
    for state, gradients in zip(states, found, strict=False):
        model, resumed = fresh()
        resumed.load_state_dict(state)
        assert all(torch.equal(one, other) for one, other in zip(backward(model, resumed), gradients, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def backward(model: nn.Module, adaptation: Reparametrised, pixels: int = 64) -> list[Tensor]:
    """Gradients of the factors in one step, which is not taken."""
    factors = [factor for unit in adaptation.units for factor in unit.factors.values()]
    for factor in factors:
        factor.grad = None
    pictures = torch.randn(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))
    functional.cross_entropy(model(pictures), torch.tensor([0, 1])).backward()
    adaptation.after_backward()
    return [factor.grad.clone() for factor in factors if factor.grad is not None]


def test_what_a_layer_was_given_is_let_go_during_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Around(nn.Linear(40, 30))
    way, _, _ = with_factors(model, "layer.weight", 2)
    assert way is not None
    learn, kept = way._learn, []

    def listening(gradient: Tensor, given: Tensor, thin: bool) -> None:
        kept.append(weakref.ref(given))
        learn(gradient, given, thin)

    monkeypatch.setattr(way, "_learn", listening)
    loss = model(torch.randn(5, 40))
    loss.backward()
    assert [one() for one in kept] == [None]
    assert loss.grad_fn is not None, "the graph is there, and with it the hook"


class Watched(Around):
    """A layer whose inputs nobody else needs after it has been called."""

    patch_embed = SimpleNamespace(grid_size=(12, 12))
    num_prefix_tokens = 1

    def forward(self, x: Tensor) -> Tensor:
        given = self.scale * x
        self.given = StorageWeakRef(given.untyped_storage())
        return self.layer(given).square().mean()


@pytest.mark.parametrize(
    ("case", "shape", "is_kept"),
    [
        ("linear", (3, 145, 40), False),
        ("linear", (3, 144, 40), True),
        ("linear", (2, 12, 12, 40), False),
        ("linear", (2, 11, 11, 40), True),
    ],
    ids=["tokens", "other tokens", "maps", "small maps"],
)
def test_of_what_a_linear_layer_was_given_a_sample_is_kept(case: str, shape: tuple[int, ...], is_kept: bool) -> None:
    """On trial it is kept whole."""
    model, x = Watched(PICTURES[case][0]()), torch.randn(shape)
    way, *_ = with_factors(model, "layer.weight", 2, lambda: 0)
    assert way is not None
    model.layer.requires_grad_(False)
    loss = model(x)
    assert not model.given.expired()
    loss.backward()
    assert model.given.expired()
    way.trusted = True
    loss = model(x)
    assert model.given.expired() is not is_kept
    loss.backward()
    assert way.pull_back()


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


def test_a_weight_rests_when_all_of_its_rows_may() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3)
    partition = PluginManager().partition(PluginManager().architecture_for(model), model)
    settings = MethodSettings(rank=1)
    lora = Lora().adapt(model, partition, settings)
    assert isinstance(lora, Reparametrised)
    units = [unit for unit in lora.units if unit.live.name.startswith("blocks.0.attn.qkv.weight")]
    assert len(units) == 3
    for unit in units:
        nn.init.normal_(unit.factors["up"])
    adaptation = Reparametrised(model, partition, units, ["blocks.0.norm1.weight"], settings)
    backward(model, adaptation, 160)
    assert not model.blocks[0].attn.qkv.weight.requires_grad
    assert adaptation.start_step(0.5), "the optimiser is told"


@pytest.mark.parametrize("loss", [0.0, float("inf")])
def test_a_step_that_says_nothing_does_not_end_the_trial(loss: float) -> None:
    torch.manual_seed(0)
    model, x = Around(nn.Linear(40, 30)), torch.randn(5, 40)
    way, _, _ = with_factors(model, "layer.weight", 2)
    assert way is not None
    (loss * model(x)).backward()
    way.judge()
    assert way.trusted is None
    way.pull_back()
    model.zero_grad()
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


@pytest.mark.parametrize("model", [UsedElsewhere, NeverCalled, FromConstants])
def test_a_weight_that_counts_elsewhere_keeps_its_own_gradient(model: type[Around]) -> None:
    torch.manual_seed(0)
    made, x = model(nn.Linear(40, 30, bias=False)), torch.randn(2, 11, 12, 40)
    way = of_weight(made, live_tensors(made, ["layer.weight"])["layer.weight"], lambda: 0)
    assert way is not None
    made(x).backward()
    way.judge()
    assert way.trusted is False
    assert not way.pull_back()
    assert torch.equal(made.layer.weight.grad, torch.autograd.grad(made(x), made.layer.weight)[0])
    assert not made.layer._forward_hooks


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
