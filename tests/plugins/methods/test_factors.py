"""Weights computed from factors: gradients and outputs against the unfolded forms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import log, prod
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from taps_registry.plugins.architectures.generic import Generic
from taps_registry.plugins.architectures.vit import VisionTransformer
from taps_registry.plugins.encodings import Form
from taps_registry.plugins.encodings.low_rank import PlainLowRank
from taps_registry.plugins.manager import PluginManager
from taps_registry.plugins.methods import Method, MethodSettings
from taps_registry.plugins.methods.diff_pruning import DiffPruning, DiffPruningAdaptation, Sparse
from taps_registry.plugins.methods.lora import Lora
from taps_registry.plugins.methods.parallel_adapter import Centre, ParallelAdapter
from taps_registry.plugins.methods.piggyback import Masked, Piggyback
from taps_registry.plugins.methods.rcm import Modulated, Rcm
from taps_registry.plugins.methods.reparametrised import Reparametrised, Unit
from taps_registry.registry.errors import PluginError

HALF_ULP = 2.0**-24  # the relative error of one rounding to float32
Factors = dict[str, Tensor]


class Tower(nn.Module):
    """A layer of each kind, one after another; each is a name, so that a test can compute it another way."""

    pretrained_cfg = {"classifier": "head"}  # noqa: RUF012  (timm's is a plain dict too)

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=2)
        self.strided = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.dilated = nn.Conv2d(8, 12, 3, padding=2, dilation=2, bias=False)
        self.grouped = nn.Conv2d(12, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.pointwise = nn.Conv2d(8, 10, 1, stride=2)
        self.linear = nn.Linear(10, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, images: Tensor, layer: Callable[[str, Tensor], Tensor] | None = None) -> Tensor:
        """Logits; ``layer`` computes a layer by its name."""
        layer = layer or (lambda name, x: self.get_submodule(name)(x))
        x = images
        for name in LAYERS:
            x = torch.tanh(layer(name, x.mean((2, 3)) if name == "linear" else x))
        logits: Tensor = self.head(x)
        return logits


LAYERS = ("patch", "strided", "dilated", "grouped", "depthwise", "pointwise", "linear")
CONVOLUTIONS = LAYERS[:-1]
SPATIAL = LAYERS[:-2]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def double() -> Iterator[None]:
    """Two ways to compute the same thing agree closely in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def adapted(method: Method, told: MethodSettings) -> Reparametrised:
    """A tower whose factors are somewhere on their way."""
    tower = Tower()
    adaptation = method.adapt(tower, Generic().partition(tower).check(tower), told)
    assert isinstance(adaptation, Reparametrised)
    stir(adaptation)
    return adaptation


def stir(adaptation: Reparametrised) -> None:
    """Move every factor away from where it began."""
    with torch.no_grad():
        for factor in (factor for unit in adaptation.units for factor in unit.factors.values()):
            factor += 0.3 * torch.randn_like(factor)
    adaptation.write()


def leaves_of(units: Iterable[Unit]) -> dict[str, Factors]:
    """Copies of the factors of each weight, for another way to compute with them."""
    return {u.live.name: {name: f.detach().clone().requires_grad_() for name, f in u.factors.items()} for u in units}


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Equal, and zeros of the same sign."""
    return torch.equal(first.detach().contiguous().view(torch.int32), second.detach().contiguous().view(torch.int32))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 3, 17, 17), torch.arange(4) % 3


def plain(module: nn.Module, x: Tensor, weight: Tensor, *, bias: bool = True) -> Tensor:
    """A layer's own operation, with another weight."""
    offset = module.bias if bias else None
    if isinstance(module, nn.Linear):
        return functional.linear(x, weight, offset)
    return functional.conv2d(
        x, weight, offset, module.stride, module.padding, module.dilation, len(weight) // _per_group(module, weight)
    )


def _per_group(module: nn.Module, weight: Tensor) -> int:
    return len(weight) // module.groups


def pointwise(module: nn.Module, x: Tensor, weight: Tensor, stride: Any = 1) -> Tensor:
    """``weight (C_out, C_in / groups)`` as a 1x1 convolution of the same groups."""
    if isinstance(module, nn.Linear):
        return functional.linear(x, weight)
    return functional.conv2d(x, weight[:, :, None, None], stride=stride, groups=module.groups)


# The unfolded forms, as their papers draw them


def lora_unfolded(module: nn.Module, x: Tensor, base: Tensor, factors: Factors, scale: float = 1.0) -> Tensor:
    """A convolution by ``A``, then a 1x1 one by ``B``; with groups, each has the filters of ``A``."""
    kernels = factors["down"].reshape(-1, *base.shape[1:])
    inner = kernels.repeat(getattr(module, "groups", 1), *[1] * (base.ndim - 1))
    return plain(module, x, base) + scale * pointwise(module, plain(module, x, inner, bias=False), factors["up"])


def rcm_unfolded(module: nn.Module, x: Tensor, base: Tensor, factors: Factors) -> Tensor:
    """The frozen bank, then a 1x1 modulator, then the bias."""
    mixed = pointwise(module, plain(module, x, base, bias=False), factors["modulator"].flatten(0, 1))
    if module.bias is None:
        return mixed
    return mixed + (module.bias if mixed.ndim == 2 else module.bias[:, None, None])


def weight_normed(factors: Factors) -> Factors:
    rows = [
        gain * direction / direction.norm()
        for gain, direction in zip(factors["gains"].flatten(), factors["directions"].flatten(0, 1), strict=True)
    ]
    return {"modulator": torch.stack(rows).reshape(factors["directions"].shape)}


def adapter_unfolded(module: nn.Module, x: Tensor, base: Tensor, factors: Factors) -> Tensor:
    """The convolution, and beside it a 1x1 one of the same stride, over what the kernel's centre sees."""
    before = plain(module, x, base)
    offset = base.shape[-1] // 2 * module.dilation[0] - module.padding[0]
    beside = pointwise(module, x[:, :, offset:, offset:], factors["adapter"], module.stride)
    return before + beside[:, :, : before.shape[2], : before.shape[3]]


def lora_of_rank(rank: int, alpha: float) -> tuple[Method, MethodSettings, Callable[..., Tensor]]:
    """A matrix has no more ranks than rows or columns."""

    def unfolded(module: nn.Module, x: Tensor, base: Tensor, factors: Factors) -> Tensor:
        return lora_unfolded(module, x, base, factors, scale=alpha / min(rank, base[0].numel(), len(base)))

    return Lora(), Lora.settings(rank=rank, alpha=alpha), unfolded


UNFOLDED: dict[str, tuple[Method, MethodSettings, Callable[..., Tensor]]] = {
    "lora": lora_of_rank(2, alpha=3.0),
    "lora of more ranks than rows": lora_of_rank(11, alpha=2.0),
    "rcm": (Rcm(), Rcm.settings(), lambda m, x, base, factors: rcm_unfolded(m, x, base, weight_normed(factors))),
    "parallel-adapter": (ParallelAdapter(), ParallelAdapter.settings(), adapter_unfolded),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("method", UNFOLDED)
def test_gradients_of_factors_are_those_of_the_unfolded_form(method: str) -> None:
    made, told, unfolded = UNFOLDED[method]
    adaptation, (images, labels) = adapted(made, told), batch()
    tower = adaptation.model
    loss = functional.cross_entropy(tower(images), labels)
    loss.backward()
    adaptation.after_backward()
    found = {unit.live.name: unit for unit in adaptation.units}
    assert set(found) == {f"{name}.weight" for name in (SPATIAL if method == "parallel-adapter" else LAYERS)}
    head = [p.grad.clone() for p in tower.head.parameters()]
    tower.zero_grad()

    leaves = leaves_of(adaptation.units)

    def layer(name: str, x: Tensor) -> Tensor:
        unit, module = found.get(f"{name}.weight"), tower.get_submodule(name)
        return module(x) if unit is None else unfolded(module, x, unit.live.base, leaves[unit.live.name])

    reference = functional.cross_entropy(tower(images, layer), labels)
    reference.backward()
    torch.testing.assert_close(loss, reference, rtol=1e-12, atol=1e-12)
    for name, unit in found.items():
        for part, factor in unit.factors.items():
            shown = factor.grad.abs().max() > 1e-7 or factor.shape[1:] == (1, 1)  # the norm of one value is itself
            assert shown, f"{part} of {name} got no gradient: the test shows nothing"
            torch.testing.assert_close(factor.grad, leaves[name][part].grad, rtol=1e-9, atol=1e-13)
        assert unit.live.owner.grad is None, "the optimiser would move the weight itself"
    for ours, theirs in zip(head, tower.head.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad, rtol=1e-9, atol=1e-13)


class Step(torch.autograd.Function):
    """A step forward, the identity backward."""

    @staticmethod
    def forward(ctx: object, value: Tensor, opened: Tensor) -> Tensor:
        return opened.to(value.dtype)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def composed(
    adaptation: Reparametrised, weight: Callable[[Unit, Factors], Tensor]
) -> tuple[Tensor, dict[str, Factors]]:
    """The loss of the model under weights composed in its forward pass, and the leaves it depends on."""
    leaves = leaves_of(adaptation.units)
    whole = {unit.live.name.partition("[")[0]: unit.live.owner.detach().clone() for unit in adaptation.units}
    for unit in adaptation.units:
        name, made = unit.live.name.partition("[")[0], weight(unit, leaves[unit.live.name])
        rows = unit.live.rows or slice(None)
        whole[name] = torch.cat([whole[name][: rows.start or 0], made, whole[name][(rows.start or 0) + len(made) :]])
    images, labels = torch.randn(3, 3, 32, 32), torch.arange(3)
    adaptation.model.eval()
    loss = functional.cross_entropy(functional_call(adaptation.model, whole, (images,)), labels)
    adaptation.model.zero_grad()
    functional.cross_entropy(adaptation.model(images), labels).backward()
    adaptation.after_backward()
    return loss, leaves


def low_rank(unit: Unit, factors: Factors) -> Tensor:
    scale = 6.0 / min(3, *unit.live.base.flatten(1).shape)
    return unit.live.base + (scale * factors["up"] @ factors["down"]).reshape(unit.live.base.shape)


def modulated(unit: Unit, factors: Factors) -> Tensor:
    mixer = weight_normed(factors)["modulator"]
    banks = unit.live.base.reshape(len(mixer), mixer.shape[1], -1)
    return torch.cat([block @ bank for block, bank in zip(mixer, banks, strict=True)]).reshape(unit.live.base.shape)


def masked(unit: Unit, factors: Factors) -> Tensor:
    """``dLoss/dm = G W0``."""
    return unit.live.base * Step.apply(factors["mask"], factors["mask"] > 5e-3)


WEIGHTS: dict[str, tuple[Method, MethodSettings, Callable[[Unit, Factors], Tensor]]] = {
    "lora": (Lora(), Lora.settings(rank=3, alpha=6.0), low_rank),
    "rcm": (Rcm(), Rcm.settings(), modulated),
    "piggyback": (Piggyback(), Piggyback.settings(), masked),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("model", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("method", WEIGHTS)
def test_gradients_of_factors_are_those_of_autograd_through_a_whole_model(method: str, model: str) -> None:
    """In the transformer, queries, keys and values are three layers in one parameter."""
    made, told, weight = WEIGHTS[method]
    arguments = {"img_size": 32} if model == "test_vit" else {}
    built = timm.create_model(model, num_classes=3, **arguments)
    plugin = VisionTransformer() if model == "test_vit" else Generic()
    adaptation = made.adapt(built, plugin.partition(built).check(built), told)
    assert isinstance(adaptation, Reparametrised)
    assert model == "test_resnet" or sum(unit.live.rows is not None for unit in adaptation.units) == 18
    stir(adaptation)
    loss, leaves = composed(adaptation, weight)
    loss.backward()
    for unit in adaptation.units:
        for part, factor in unit.factors.items():
            torch.testing.assert_close(factor.grad, leaves[unit.live.name][part].grad, rtol=1e-8, atol=1e-13)
    assert any(factor.grad.any() for unit in adaptation.units for factor in unit.factors.values())


# Diff pruning


LOW, HIGH = -1.5, 1.5


def hard_concrete(gate: Tensor, uniform: Tensor) -> Tensor:
    stretched = torch.sigmoid(uniform.log() - (1 - uniform).log() + gate) * (HIGH - LOW) + LOW
    return stretched.clamp(0, 1)


def chance_of_open(gate: Tensor) -> Tensor:
    return torch.sigmoid(gate - log(-LOW / HIGH))


def pruned(told: MethodSettings) -> DiffPruningAdaptation:
    """A tower with gates around one half, so that some are shut, some open and some in between."""
    adaptation = adapted(DiffPruning(), told)
    assert isinstance(adaptation, DiffPruningAdaptation)
    with torch.no_grad():
        for unit in adaptation.pruned:
            unit.factors["gates"].copy_(2 * torch.randn_like(unit.factors["gates"]))
            unit.factors["gate"].fill_(0.5)
    return adaptation


def uniforms(adaptation: DiffPruningAdaptation, seed: int) -> dict[str, Factors]:
    """What the adaptation is about to draw."""
    chance = torch.Generator().manual_seed(seed)
    return {
        unit.live.name: {
            name: torch.rand(unit.factors[name].shape, generator=chance).clamp(1e-6, 1 - 1e-6)
            for name in ("gates", "gate")
        }
        for unit in adaptation.pruned
    }


@pytest.mark.usefixtures("double")
def test_diff_pruning_follows_the_hard_concrete_gate_and_its_penalty() -> None:
    adaptation, (images, labels) = pruned(DiffPruning.settings(epochs=2, sparsity=3.0, keep=0.1)), batch()
    tower, total = adaptation.model, sum(unit.live.base.numel() for unit in adaptation.pruned)
    drawn = uniforms(adaptation, seed=5)
    adaptation.generator.manual_seed(5)
    adaptation.after_step()
    functional.cross_entropy(tower(images), labels).backward()
    adaptation.after_backward()
    adaptation.before_step(lr=0.0)

    leaves = leaves_of(adaptation.pruned)
    weights, opened, gates = {}, [], []
    for unit in adaptation.pruned:
        own, chance = leaves[unit.live.name], drawn[unit.live.name]
        each, all_of_it = hard_concrete(own["gates"], chance["gates"]), hard_concrete(own["gate"], chance["gate"])
        weights[unit.live.name] = unit.live.base + own["difference"] * each * all_of_it
        opened.append((chance_of_open(own["gates"]) * chance_of_open(own["gate"])).sum())
        gates.append(each.detach().flatten())
    penalty = 3.0 * sum(opened) / total
    (functional.cross_entropy(functional_call(tower, weights, (images,)), labels) + penalty).backward()
    shares = [float(share) for share in ((torch.cat(gates) == end).double().mean() for end in (0, 1))]
    assert min(shares) > 0.2, "no gate was shut or open: the test shows nothing"
    assert sum(shares) < 0.8
    assert adaptation.penalty() == pytest.approx(float(penalty.detach()), rel=1e-12)
    for unit in adaptation.pruned:
        torch.testing.assert_close(tower.get_parameter(unit.live.name).detach(), weights[unit.live.name].detach())
        for part, factor in unit.factors.items():
            torch.testing.assert_close(factor.grad, leaves[unit.live.name][part].grad, rtol=1e-9, atol=1e-14)


def test_the_penalty_of_diff_pruning_is_the_share_of_gates_that_draws_open() -> None:
    """``sigmoid(a - log(-l / r))`` is a probability: 3,000 draws of 400 gates are within five deviations of it."""
    adaptation = pruned(DiffPruning.settings(sparsity=1.0))
    unit = next(unit for unit in adaptation.pruned if unit.live.name == "patch.weight")
    adaptation.pruned, adaptation.total = [unit], unit.live.base.numel()
    with torch.no_grad():
        unit.factors["difference"].fill_(1.0)
    draws = 3000
    seen = 0.0
    for _ in range(draws):
        unit.draw(adaptation.generator)
        seen += float((unit.difference() > 0).float().mean())
    expected = adaptation.penalty()
    deviation = (expected * (1 - expected) / draws) ** 0.5  # the tensor's gate shuts all of them at once
    assert 0.2 < expected < 0.8
    assert seen / draws == pytest.approx(expected, abs=5 * deviation)


@pytest.mark.parametrize("keep", [0.01, 0.2])
def test_diff_pruning_keeps_the_largest_differences_of_all_layers_and_refits_no_others(keep: float) -> None:
    adaptation, (images, labels) = pruned(DiffPruning.settings(epochs=4, keep=keep)), batch()
    adaptation.start_epoch(0)
    adaptation.end_epoch(1)
    expected = [u.factors["difference"] * hard(u.factors["gates"]) * hard(u.factors["gate"]) for u in adaptation.pruned]
    sizes = torch.cat([difference.detach().abs().flatten() for difference in expected])
    count = round(keep * len(sizes))
    smallest = sizes.sort(descending=True).values[count - 1]
    for unit, difference in zip(adaptation.pruned, expected, strict=True):
        kept = difference.abs() >= smallest
        assert torch.equal(unit.live.value != unit.live.base, kept)
    adaptation.start_epoch(2)
    optimiser = torch.optim.SGD(adaptation.parameter_groups(), lr=0.5)
    before = [unit.live.value.clone() for unit in adaptation.pruned]
    functional.cross_entropy(adaptation.model(images), labels).backward()
    adaptation.after_backward()
    adaptation.before_step(lr=0.5)
    optimiser.step()
    adaptation.after_step()
    assert adaptation.penalty() == 0.0
    moved = [u.live.value != old for u, old in zip(adaptation.pruned, before, strict=True)]
    kept = [u.live.value != u.live.base for u in adaptation.pruned]
    assert sum(int(mask.sum()) for mask in kept) == count
    assert any(mask.any() for mask in moved)
    assert all(not (mask & ~own).any() for mask, own in zip(moved, kept, strict=True))


def hard(gate: Tensor) -> Tensor:
    """The gate when nothing is drawn."""
    return hard_concrete(gate, torch.tensor(0.5))


# Training starts at the base, decays towards it, and the pace of masks


STARTS: dict[str, Method] = {
    "lora": Lora(),
    "rcm": Rcm(),
    "parallel-adapter": ParallelAdapter(),
    "piggyback": Piggyback(),
    "diff-pruning": DiffPruning(),
}


@pytest.mark.parametrize("method", STARTS)
def test_training_starts_at_the_base_to_the_last_bit_and_factors_get_gradients_at_once(method: str) -> None:
    tower = Tower()
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    adaptation = STARTS[method].adapt(tower, Generic().partition(tower), STARTS[method].settings())
    assert isinstance(adaptation, Reparametrised)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tower.state_dict().items())
    images, labels = batch()
    functional.cross_entropy(tower(images), labels).backward()
    adaptation.after_backward()
    for unit in adaptation.units:
        assert any(factor.grad is not None and factor.grad.any() for factor in unit.factors.values()), unit.live.name
    assert tower.patch.bias.grad is None, "biases stay those of the base"


def test_a_model_without_a_layer_that_a_method_can_adapt_is_refused() -> None:
    plain_model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Linear(8, 3))
    plain_model.pretrained_cfg = {"classifier": "2"}
    partition = Generic().partition(plain_model)
    assert len(Lora().adapt(plain_model, partition, Lora.settings()).stored().factors) == 0, "it is stored whole"
    for verb in (ParallelAdapter().least, ParallelAdapter().most, ParallelAdapter().adapt):
        with pytest.raises(PluginError, match="--method parallel-adapter finds no layer in Sequential"):
            verb(plain_model, partition, Rcm.settings())


@pytest.mark.parametrize("method", ["rcm", "piggyback"])
def test_decay_does_not_pull_factors_to_zero_where_zero_is_not_the_base(method: str) -> None:
    adaptation = STARTS[method].adapt(
        tower := Tower(), Generic().partition(tower), STARTS[method].settings(weight_decay=0.5)
    )
    assert isinstance(adaptation, Reparametrised)
    decayed = {id(p) for group in adaptation.parameter_groups() if group["weight_decay"] for p in group["params"]}
    factors = [factor for unit in adaptation.units for factor in unit.factors.values()]
    assert decayed == {id(tower.head.weight)}
    assert {id(p) for group in adaptation.parameter_groups() for p in group["params"]} >= set(map(id, factors))


def test_masks_train_at_a_tenth_of_the_rate_and_gates_of_pruning_at_that_of_scores() -> None:
    masks = Piggyback().adapt(tower := Tower(), Generic().partition(tower), Piggyback.settings(lr=0.2))
    assert isinstance(masks, Reparametrised)
    assert [group["lr"] for group in masks.factor_groups() if group["params"]] == pytest.approx([0.02])
    gates = adapted(DiffPruning(), DiffPruning.settings(score_lr=0.3))
    rates = {id(p): group.get("lr") for group in gates.factor_groups() for p in group["params"]}
    assert {(n, rates[id(f)]) for u in gates.units for n, f in u.factors.items()} == {
        ("difference", None),
        ("gates", 0.3),
        ("gate", 0.3),
    }


# Folded and unfolded give the same outputs, within what rounding explains


def conv_inputs(name: str) -> Tensor:
    channels = {"patch": 3, "strided": 8, "dilated": 8, "grouped": 12, "depthwise": 8, "pointwise": 8}
    return torch.randn(2, 10) if name == "linear" else torch.randn(2, channels[name], 17, 17)


BOUNDS: dict[str, tuple[Form, Callable[..., Tensor], Callable[[Tensor, Factors], Tensor]]] = {
    "low-rank": (
        PlainLowRank(),
        lora_unfolded,
        lambda base, parts: base.abs() + (parts["up"].abs() @ parts["down"].abs()).reshape(base.shape),
    ),
    "modulated": (
        Modulated(),
        rcm_unfolded,
        lambda base, parts: torch.cat(
            [
                mixer.abs() @ bank.abs()
                for mixer, bank in zip(parts["modulator"], base.reshape(*parts["modulator"].shape[:2], -1), strict=True)
            ]
        ).reshape(base.shape),
    ),
    "centre": (
        Centre(),
        adapter_unfolded,
        lambda base, parts: base.abs() + functional.pad(parts["adapter"].abs()[..., None, None], _around(base)),
    ),
}


def _around(base: Tensor) -> tuple[int, int, int, int]:
    height, width = base.shape[2:]
    return width // 2, width - 1 - width // 2, height // 2, height - 1 - height // 2


def parts_for(form: str, base: Tensor, groups: int) -> Factors:
    rows, columns = len(base), prod(base.shape[1:])
    if form == "low-rank":
        return {"up": torch.randn(rows, 3), "down": torch.randn(3, columns)}
    if form == "modulated":
        return {"modulator": torch.randn(groups, rows // groups, rows // groups)}
    return {"adapter": torch.randn(base.shape[:2])}


@pytest.mark.parametrize(
    ("form", "name"), [(form, name) for form in BOUNDS for name in (SPATIAL if form == "centre" else LAYERS)]
)
def test_a_folded_layer_gives_what_the_unfolded_one_gives_but_for_rounding(form: str, name: str) -> None:
    """Each output is a sum of ``d`` products of an input and a weight, which is itself a sum of ``r`` products.

    In any order, ``n`` roundings err by at most ``n 2^-24`` of the sum of the absolute products, with ``n = d`` for the
    sum, ``r + 2`` for the weight, and one for the bias. The unfolded form is computed in double precision.
    """
    decoder, unfolded, magnitude = BOUNDS[form]
    module = Tower().get_submodule(name).requires_grad_(False)
    x, base = conv_inputs(name), module.weight.clone()
    parts = parts_for(form, base, getattr(module, "groups", 1))
    weight = decoder.decode(parts, base)
    folded = plain(module, x, weight)

    exact = {part: tensor.double() for part, tensor in parts.items()}
    module.double()
    expected = unfolded(module, x.double(), base.double(), exact)
    inner = max(parts[part].shape[-1] for part in parts) if form != "centre" else 1
    roundings = base[0].numel() + inner + 3
    scale = plain(module, x.double().abs(), magnitude(base.double(), exact), bias=False)
    if module.bias is not None:
        scale = scale + (module.bias.abs() if scale.ndim == 2 else module.bias.abs()[:, None, None])
    error = (folded.double() - expected).abs()
    assert (error <= 1.01 * roundings * HALF_ULP * scale).all()
    assert error.any(), "nothing was rounded: the test shows nothing"
    assert (folded.double() - plain(module, x.double(), base.double())).abs().max() > 0.1


@pytest.mark.parametrize("method", [name for name in STARTS if name != "diff-pruning"])
def test_what_is_stored_decodes_to_the_weight_that_trained(method: str) -> None:
    """To the last bit where each value is computed by itself; else within the roundings of ``r`` additions."""
    told = Lora.settings(rank=3)
    adaptation = adapted(STARTS[method], told)
    seen = 0
    for unit in adaptation.units:
        parts = {name: part.detach() for name, part in unit.parts().items()}
        decoded = PluginManager().form(unit.form).decode(parts, unit.live.base)
        if unit.form in ("masked", "centre"):
            assert torch.equal(decoded, unit.live.value)
        else:
            magnitude = BOUNDS[unit.form][2](unit.live.base, parts)
            inner = max(part.shape[-1] for part in parts.values() if part.shape[-1] != unit.live.base[0].numel())
            assert ((decoded - unit.live.value).abs() <= 2 * (inner + 3) * HALF_ULP * magnitude).all()
        seen += not torch.equal(decoded, unit.live.base)
        assert sum(part.nbytes for part in parts.values()) == unit.size().bytes
    assert seen == len(adaptation.units)


def test_a_mask_decodes_to_the_bases_own_values_to_the_last_bit() -> None:
    adaptation = adapted(Piggyback(), Piggyback.settings())
    for unit in adaptation.units:
        mask = unit.factors["mask"] > 5e-3
        decoded = Masked().decode(unit.parts(), unit.live.base)
        assert same_bits(decoded[mask], unit.live.base[mask])
        assert not decoded[~mask].any()
        assert 0 < mask.sum() < mask.numel()


def test_pruned_weights_decode_to_the_values_in_effect_to_the_last_bit() -> None:
    adaptation = pruned(DiffPruning.settings(epochs=2, keep=0.2))
    adaptation.end_epoch(0)
    for unit in adaptation.pruned:
        parts = {name: part.detach() for name, part in unit.parts().items()}
        assert same_bits(Sparse().decode(parts, unit.live.base), unit.live.value)
        assert sum(part.nbytes for part in parts.values()) == unit.size().bytes
        assert len(parts["values"]) == unit.size().params


# One side frozen


@pytest.mark.parametrize("frozen", ["up", "down"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_factor_that_does_not_train_gets_no_gradient_and_the_other_gets_its_own(frozen: str, steps: int) -> None:
    """On CPUs the first step is the long way, and further ones take shortcuts."""
    told = Lora.settings(lr=1e-3, rank=2, alpha=2.0, epochs=1, low_rank_form=PlainLowRank())
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(adapted(Lora(), told))
    free, half = made
    for unit in half.units:
        unit.factors[frozen].requires_grad_(False)
    images, labels = batch()
    for _ in range(steps):
        for adaptation in (free, half):
            for unit in adaptation.units:
                for factor in unit.factors.values():
                    factor.grad = None
            adaptation.train()
            functional.cross_entropy(adaptation.model(images), labels).backward()
            adaptation.after_backward()
    for one, other in zip(free.units, half.units, strict=True):
        assert other.factors[frozen].grad is None
        for name in set(one.factors) - {frozen}:
            assert torch.allclose(one.factors[name].grad, other.factors[name].grad, rtol=1e-4, atol=1e-7)
