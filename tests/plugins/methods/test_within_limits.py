"""How gates and directions are chosen within limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from taps_registry.plugins.architectures import Layer, Partition
from taps_registry.plugins.architectures.resnet import ResNet
from taps_registry.plugins.encodings.low_rank import PACKED, PackedLowRank
from taps_registry.plugins.methods import Adaptation, Size, Stored, live_tensors
from taps_registry.plugins.methods.gating import Scores
from taps_registry.plugins.methods.limits import Limit
from taps_registry.plugins.methods.low_rank import highest_rank
from taps_registry.plugins.methods.rank_allocation import Decomposition, allocate_ranks
from taps_registry.plugins.methods.steering import FIXED_AT, SHRINKS_AT, Steering
from taps_registry.plugins.methods.taps import Taps, TapsAdaptation
from taps_registry.plugins.methods.taps_rank import FAST, SLOW, RankAdaptation, TapsRank
from taps_registry.registry.records import Task

Add = Callable[..., Task]
MODEL = "test_resnet"
HEAD = 3 * 96 + 3
BACKBONE = 372_688  # its parameters without the classifier, counted from timm's own model below


# Gates


def fitted(method: Any, limits: tuple[Limit, ...] = (), **told: Any) -> tuple[nn.Module, Partition, Adaptation]:
    """A small model with a task's gradients in it, and its adaptation."""
    torch.manual_seed(0)
    model = timm.create_model(MODEL, num_classes=3)
    partition = ResNet().partition(model)
    adaptation = method.adapt(model, partition, method.settings(epochs=1, limits=limits, **told))
    adaptation.train()
    return model, partition, adaptation


def steps(model: nn.Module, adaptation: Adaptation, count: int, optimiser: torch.optim.Optimizer) -> None:
    for step in range(count):
        if adaptation.start_step(step / count):
            for group in adaptation.late_groups():
                optimiser.add_param_group(group)
        pixels = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        functional.cross_entropy(model(pixels), torch.arange(8) % 3).backward()
        adaptation.after_backward()
        adaptation.before_step(1e-3)
        optimiser.step()
        optimiser.zero_grad()
        adaptation.after_step()


def share(model: nn.Module, partition: Partition, of: float) -> Limit:
    """A limit of a share of the layers' parameters, with every other tensor free."""
    tensors = model.state_dict()
    prices = {name: tensors[name].numel() for name in partition.layer_tensors()}
    return Limit(int(of * sum(prices.values())), prices, in_bytes=False)


def bare() -> tuple[nn.Module, Partition]:
    model = timm.create_model(MODEL, num_classes=3)
    return model, ResNet().partition(model)


def test_gates_are_fixed_and_closed_layers_are_the_base_and_train_no_more() -> None:
    limit = share(*bare(), of=0.2)
    model, partition, adaptation = fitted(Taps(), (limit,))
    assert isinstance(adaptation, TapsAdaptation)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimiser = torch.optim.AdamW(adaptation.parameter_groups(), lr=1e-3)
    steps(model, adaptation, 10, optimiser)
    opened = {state.name for state in adaptation.layer_states() if state.open}
    assert opened
    assert limit.holds(adaptation.stored())
    for layer in partition.layers:
        parameter = model.get_parameter(layer.tensors[0])
        assert parameter.requires_grad == (layer.name in opened)
        assert torch.equal(parameter, before[layer.tensors[0]]) == (layer.name not in opened)
    assert all(tensor.numel() == 0 for gate in adaptation.gates for tensor in gate.parked.values()), "deltas are freed"


def test_without_limits_no_gate_is_ever_fixed() -> None:
    model, _, adaptation = fitted(Taps())
    assert isinstance(adaptation, TapsAdaptation)
    steps(model, adaptation, 10, torch.optim.AdamW(adaptation.parameter_groups(), lr=1e-3))
    assert not adaptation.scores.fixed
    assert all(parameter.requires_grad for parameter in model.parameters())


LAYERS = tuple((Layer(name, "conv", (name,), "stem"),) for name in "abcd")


def steering(prices: list[int], amount: int) -> Steering:
    limit = Limit(amount, dict(zip("abcd", prices, strict=True)))
    costs = [Stored(frozenset(name)) for name in "abcd"]
    return Steering(LAYERS, (limit,), torch.device("cpu"), costs, Stored(frozenset()))


def test_gates_worth_most_for_their_price_stay_open() -> None:
    judge = steering([10, 10, 1, 40], amount=20)
    assert judge.wanted() == [True, True, True, False], "one that can never fit is closed from the beginning"
    for _ in range(50):
        judge.set_gradients(torch.tensor([3.0, -4.0, 1.0, 9.0]))
    assert judge.worth.tolist() == pytest.approx([9, 16, 1, 81], rel=0.1)
    assert judge.choose() == [False, True, True, False]
    judge.worth.fill_(7.0)
    assert judge.choose() == [True, False, True, False], "equal worth: the cheapest, then the first"


def test_what_is_open_shrinks_to_the_limit_and_is_fixed() -> None:
    judge = steering([10, 10, 10, 10], amount=10)
    judge.set_gradients(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    counts = []
    for done in (0.0, SHRINKS_AT, 0.15, 0.25, 0.39, FIXED_AT, 1.0):
        told = judge.start_step(done)
        counts.append(sum(judge.wanted()))
        assert told == (done == FIXED_AT or counts[-1] < counts[max(0, len(counts) - 2)])
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (4, 1)
    assert judge.wanted() == [False, False, False, True]
    assert judge.fixed
    assert judge.settled(0)


def test_a_gate_that_has_closed_stays_so_whatever_it_would_be_worth() -> None:
    judge = steering([10, 10, 10, 10], amount=20)
    judge.worth = torch.tensor([4.0, 3.0, 2.0, 1.0])
    assert judge.start_step((SHRINKS_AT + FIXED_AT) / 2)
    assert judge.wanted() == [True, True, False, False]
    judge.worth = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert not judge.start_step((SHRINKS_AT + FIXED_AT) / 2)
    assert judge.start_step(FIXED_AT)
    assert judge.wanted() == [True, True, False, False]
    judge.begin_again()
    assert judge.choose() == [False, False, True, True]


@given(
    st.lists(st.integers(0, 50), min_size=4, max_size=4),
    st.lists(st.floats(0, 1e6), min_size=4, max_size=4),
    st.integers(0, 120),
)
@fast(deadline=None, max_examples=60)
def test_the_choice_fits_and_leaves_out_nothing_that_would_fit(
    prices: list[int], worth: list[float], amount: int
) -> None:
    judge = steering(prices, amount)
    judge.worth = torch.tensor(worth)
    chosen = judge.choose()
    used = sum(price for price, opened in zip(prices, chosen, strict=True) if opened)
    assert used <= amount
    assert all(opened or used + price > amount for price, opened in zip(prices, chosen, strict=True))


def test_a_layer_that_has_closed_trains_no_more_while_others_are_still_to_close() -> None:
    model, _, adaptation = fitted(Taps(), (share(*bare(), of=0.2),))
    assert isinstance(adaptation, TapsAdaptation)
    for gate in adaptation.gates:
        for live in gate.trainable() if gate.open else ():
            live.value.add_(0.01 * torch.randn(live.base.shape))
    assert adaptation.start_step(0.8 * SHRINKS_AT + 0.2 * FIXED_AT)
    assert not adaptation.scores.fixed
    closed = [gate for gate in adaptation.gates if not gate.open]
    assert 0 < len(closed) < len(adaptation.gates)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for gate in adaptation.gates:
        assert trains.isdisjoint(gate.tensors) is not gate.open
        assert gate.closed_for_good is not gate.open
        assert all(torch.equal(live.value, live.base) is not gate.open for live in gate.trainable())

    again, _, resumed = fitted(Taps(), (share(*bare(), of=0.2),))
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(adaptation.state_dict())
    assert {name for name, parameter in again.named_parameters() if parameter.requires_grad} == trains


def test_several_processes_agree_once_on_what_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each change would cost buckets for all gradients anew. Gates close all the same."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    model, _, adaptation = fitted(Taps(), (share(*bare(), of=0.2),))
    assert isinstance(adaptation, TapsAdaptation)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not adaptation.start_step(0.8 * SHRINKS_AT + 0.2 * FIXED_AT)
    adaptation.after_step()
    assert 0 < sum(not gate.open for gate in adaptation.gates) < len(adaptation.gates)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trains
    assert adaptation.start_step(FIXED_AT)
    assert all(live.owner.requires_grad is gate.open for gate in adaptation.gates for live in gate.trainable())
    assert not adaptation.start_step(1.0)


@pytest.mark.parametrize(("penalty", "power"), [("uniform", 0.0), ("root", 0.5), ("size", 1.0)])
def test_the_penalty_is_what_autograd_says_for_every_weighting(penalty: str, power: float) -> None:
    sizes = [4, 100, 1, 9]
    scores = Scores(LAYERS, Taps.settings(epochs=1, sparsity=3.0, penalty=penalty), torch.device("cpu"), sizes)
    scores.penalised = True
    with torch.no_grad():
        scores.values.copy_(torch.tensor([0.2, -0.1, 0.3, 0.05]))
    values = scores.values.detach().double().requires_grad_()
    weights = torch.tensor(sizes, dtype=torch.float64) ** power
    penalty_on = 3.0 * (weights / weights.sum() * values.abs()).sum()
    penalty_on.backward()
    scores.set_gradients(torch.zeros(4))
    assert scores.values.grad is not None
    assert values.grad is not None
    torch.testing.assert_close(scores.values.grad.double(), values.grad, rtol=1e-6, atol=0)
    assert scores.penalty() == pytest.approx(penalty_on.item(), rel=1e-6)


@pytest.mark.parametrize("wrong", [float("inf"), float("nan")])
def test_a_step_that_overflows_tells_no_gate_and_no_direction_anything(wrong: float) -> None:
    """With fp16 the first steps do; the optimiser passes over them."""
    judge = steering([10, 10, 10, 10], amount=20)
    judge.set_gradients(torch.tensor([1.0, wrong, 3.0, -wrong]))
    assert judge.worth[1] == judge.worth[3] == 0 < judge.worth[0] < judge.worth[2]
    judge.set_gradients(torch.ones(4))
    assert judge.worth.isfinite().all()

    model, _, ranks = fitted(TapsRank())
    assert isinstance(ranks, RankAdaptation)
    for live in ranks.candidates:
        live.owner.grad = torch.full_like(live.owner, wrong if live is ranks.candidates[0] else 1.0)
    ranks.before_step(1e-3)
    assert ranks.curvature[0] == 0 < ranks.curvature[1:].min()
    model.zero_grad()


# Directions


def test_how_much_a_weight_matters_is_the_average_of_its_mean_squared_gradients() -> None:
    """While whole layers train; meanwhile they decay towards the base."""
    _, _, ranks = fitted(TapsRank(), weight_decay=0.3)
    assert isinstance(ranks, RankAdaptation)
    wanted, chance = torch.zeros(len(ranks.candidates)), torch.Generator().manual_seed(0)
    for live in ranks.candidates:
        live.value.add_(1.0)
    for _ in range(2):
        for index, live in enumerate(ranks.candidates):
            live.owner.grad = torch.randn(live.owner.shape, generator=chance) * (index + 1)
            wanted[index] = 0.95 * wanted[index] + 0.05 * live.owner.grad.square().mean()
        ranks.candidates[0].owner.grad = None
        ranks.before_step(0.5)
    wanted[0] = 0.0
    torch.testing.assert_close(ranks.curvature, wanted)
    for live in ranks.candidates:
        left = (live.value - live.base).mean()
        torch.testing.assert_close(left, torch.tensor((1 - 0.5 * 0.3 / 3) ** 2), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("values", "ranks"), [(250, (2, 0)), (600, (2, 3)), (1600, (13, 4)), (5000, (19, 24))])
def test_a_weight_has_an_eighth_in_factors_before_another_has_less(values: int, ranks: tuple[int, int]) -> None:
    """However much more its directions are worth."""
    model = nn.Sequential(nn.Linear(40, 40, bias=False), nn.Linear(80, 60, bias=False))
    lives = list(live_tensors(model, ["0.weight", "1.weight"]).values())
    torch.manual_seed(0)
    with torch.no_grad():
        for live in lives:
            live.value.add_(torch.randn(live.base.shape))

    def fits(taken: Counter[int]) -> bool:
        return taken[0] * 80 + taken[1] * 140 <= values

    chosen = allocate_ranks(lives, [1e6, 1.0], [Decomposition.of(live) for live in lives], fits)
    assert (chosen[0], chosen[1]) == ranks


def test_directions_that_cost_most_to_leave_out_are_kept() -> None:
    """Two layers of equal shape: one has two large directions, of the other the gradients are larger."""
    model, partition, adaptation = fitted(TapsRank(), low_rank_form=PACKED["low-rank-int8"])
    weights = [layer.tensors[0] for layer in partition.layers if model.get_parameter(layer.tensors[0]).ndim == 4]
    first, second = (next(name for name in weights if name.startswith(stage)) for stage in ("layer2", "layer3"))
    shapes = [model.get_parameter(name).shape for name in (first, second)]
    with torch.no_grad():
        for name, shape, sizes in zip((first, second), shapes, ([5.0, 4.0, 0.1], [3.0, 0.1, 0.1]), strict=True):
            left, _ = torch.linalg.qr(torch.randn(shape[0], 3))
            right, _ = torch.linalg.qr(torch.randn(prod(shape[1:]), 3))
            model.get_parameter(name).add_(((left * torch.tensor(sizes)) @ right.T).reshape(shape))
    adaptation.curvature.fill_(0.0)  # type: ignore[attr-defined]
    for index, live in enumerate(adaptation.candidates):  # type: ignore[attr-defined]
        adaptation.curvature[index] = {first: 1.0, second: 4.0}.get(live.name, 0.0)  # type: ignore[attr-defined]
    price = {
        name: PACKED["low-rank-int8"].nbytes(1, shape[0], prod(shape[1:]))
        for name, shape in zip((first, second), shapes, strict=True)
    }
    object.__setattr__(adaptation.settings, "limits", (Limit(2 * price[first] + price[second] + 10, {}),))
    assert adaptation.start_step(1.0)
    factors = adaptation.factors()
    assert {
        name: found.params // (len(model.get_parameter(name)) + prod(model.get_parameter(name).shape[1:]))
        for name, found in factors.items()
    } == {first: 2, second: 1}
    opened = [state.name for state in adaptation.layer_states() if state.open]
    assert opened == [name.removesuffix(".weight") for name in (first, second)]


def test_what_is_kept_is_the_best_approximation_and_the_rest_is_the_base() -> None:
    model, _, adaptation = fitted(TapsRank())
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimiser = torch.optim.AdamW(adaptation.parameter_groups(), lr=1e-3)
    steps(model, adaptation, 3, optimiser)
    trained = {live.name: live.value - live.base for live in adaptation.candidates}  # type: ignore[attr-defined]
    before = {name: delta.clone() for name, delta in trained.items()}
    adaptation.start_step(1.0)
    for live in adaptation.candidates:  # type: ignore[attr-defined]
        delta = before[live.name].reshape(len(live.base), -1)
        left = (live.value - live.base).reshape(len(live.base), -1) - delta
        sizes = torch.linalg.svdvals(delta)[highest_rank(live) :]
        assert float(left.norm()) == pytest.approx(float(sizes.norm()), rel=1e-3, abs=1e-5)
    assert set(adaptation.stored().factors) == set(before)
    assert base.keys() == model.state_dict().keys()


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (12, 12)])
def test_a_delta_is_taken_apart_as_by_its_singular_values(shape: tuple[int, int]) -> None:
    live = live_tensors(nn.Linear(shape[1], shape[0]), ["weight"])["weight"]
    torch.manual_seed(0)
    delta = 1e-4 * torch.randn(shape)
    with torch.no_grad():
        live.value.add_(delta)
    delta = live.value - live.base
    cut = Decomposition.of(live)
    torch.testing.assert_close(cut.sizes, torch.linalg.svdvals(delta), rtol=1e-3, atol=0)
    assert cut.vectors.shape == (min(shape), min(shape)), "no more is kept until ranks are chosen"
    up, down = cut.factors(min(shape))
    torch.testing.assert_close(up @ down, delta, rtol=0, atol=1e-9)
    for factor in (up.T, down):
        torch.testing.assert_close(factor @ factor.T, torch.diag(cut.sizes), rtol=0, atol=1e-3 * float(cut.sizes[0]))
    up, down = cut.factors(3)
    left, sizes, right = torch.linalg.svd(delta)
    torch.testing.assert_close(up @ down, left[:, :3] * sizes[:3] @ right[:3], rtol=0, atol=1e-3 * float(sizes[0]))


def test_directions_of_no_size_can_grow() -> None:
    """Those of a layer that has had no gradient so far: one factor is 0, as at the beginning of LoRA, not both."""
    live = live_tensors(nn.Linear(6, 5), ["weight"])["weight"]
    up, down = Decomposition.of(live).factors(3)
    assert not up.any()
    torch.testing.assert_close(down @ down.T, torch.eye(3))


def test_factors_train_after_the_choice_and_closed_layers_stay() -> None:
    limit = Limit(3000, {})
    model, partition, adaptation = fitted(TapsRank(), (limit,), low_rank_form=PACKED["low-rank-int4"])
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimiser = torch.optim.AdamW(adaptation.parameter_groups(), lr=1e-3)
    steps(model, adaptation, 12, optimiser)
    chosen = {unit.live.name: [f.detach().clone() for f in unit.factors.values()] for unit in adaptation.units}  # type: ignore[attr-defined]
    assert chosen
    for layer in partition.layers:
        assert torch.equal(model.state_dict()[layer.tensors[0]], base[layer.tensors[0]]) == (
            layer.tensors[0] not in chosen
        )
    assert limit.holds(adaptation.stored())
    assert {group["lr"] for group in optimiser.param_groups} == {1e-3, SLOW * 1e-3, FAST * 1e-3}
    sizes = {name: found.size for name, found in adaptation.factors().items()}
    assert sizes == dict(adaptation.stored().factors), "what is announced is what is stored, to the byte"


# Packed factors


@pytest.mark.parametrize("form", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (5, 7), (1, 16), (16, 1, 1, 1)])
def test_packed_factors_come_back_within_their_step_and_in_the_bytes_announced(
    form: PackedLowRank, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(1)
    base, rank = torch.randn(shape), 3
    up, down = torch.randn(shape[0], rank), torch.randn(rank, prod(shape[1:]))
    parts = form.parts(up, down)
    assert sum(part.nbytes for part in parts.values()) == form.nbytes(rank, shape[0], prod(shape[1:]))
    found = form.decode(parts, base)
    assert torch.equal(found, form.decode({name: part.clone() for name, part in parts.items()}, base))
    left, right = (
        factors_of(form, parts, name, length) for name, length in (("up", shape[0]), ("down", prod(shape[1:])))
    )
    expected = base + (left.T.double() @ right.double()).reshape(shape).float()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for kept, factor in ((left, up.T), (right, down)):
        step = factor.abs().amax(dim=1, keepdim=True) / form.integers.largest
        assert bool(((kept - factor).abs() <= step * max(1, form.integers.largest) / 2 + 1e-6).all())
        assert float((kept - factor).norm() / factor.norm()) < {8: 0.01, 4: 0.15, 3: 0.3}[form.integers.bits]


def factors_of(form: PackedLowRank, parts: dict[str, Tensor], name: str, length: int) -> Tensor:
    scale = parts[f"{name}-scale"]
    return form.integers.decode({"": parts[name], "scale": scale}, torch.zeros(len(scale), length))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("up", None),
        ("down-scale", None),
        ("up", torch.zeros(3, dtype=torch.uint8)),
        ("down", torch.zeros(400)),
        ("up-scale", torch.ones(2)),
        ("down-scale", torch.ones(3, dtype=torch.float64)),
        ("up-scale", torch.tensor(1.0)),
    ],
)
def test_damaged_factors_are_refused(name: str, part: Tensor | None) -> None:
    form, base = PACKED["low-rank-int4"], torch.zeros(8, 3, 3, 3)
    parts = form.parts(torch.ones(8, 3), torch.ones(3, 27))
    parts.pop(name)
    if part is not None:
        parts[name] = part
    with pytest.raises((ValueError, RuntimeError)):
        form.decode(parts, base)


def test_limits_count_tensors_and_factors() -> None:
    stored = Stored(frozenset({"a", "b", "free"}), {"c": Size(params=7, bytes=20), "d": Size(params=1, bytes=4)})
    assert Limit(0, {"a": 1, "b": 2, "z": 9}).used(stored) == 3 + 24
    assert Limit(0, {"a": 1}, in_bytes=False, each_factor=5).used(stored) == 1 + 8 + 10
