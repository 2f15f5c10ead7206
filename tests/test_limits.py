"""``--budget``: what it may say, that results keep to it, and how gates and directions are chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from taps_registry import Registry
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
from taps_registry.registry.amounts import parse
from taps_registry.registry.errors import BudgetError, Interrupted, SettingsError
from taps_registry.registry.records import Task
from taps_registry.registry.store.packed import open_packed
from taps_registry.registry.training.progress import EpochResult, Progress
from taps_registry.registry.training.settings import TaskSettings
from taps_registry.testing.home import Listener

Add = Callable[..., Task]
MODEL = "test_resnet"
HEAD = 3 * 96 + 3
BACKBONE = 372_688  # its parameters without the classifier, counted from timm's own model below


# What is said


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("5%", [(0.05, "%")]),
        ("0.5 %", [(0.005, "%")]),
        ("2MB", [(2_000_000, "bytes")]),
        ("1.5MiB", [(1_572_864, "bytes")]),
        ("300b", [(300, "bytes")]),
        ("500k", [(500_000, "parameters")]),
        ("12345", [(12_345, "parameters")]),
        ("remaining/3", [(3, "remaining")]),
        ("5%, 2MB", [(0.05, "%"), (2_000_000, "bytes")]),
        ("", []),
    ],
)
def test_a_budget_is_a_share_bytes_parameters_or_a_part_of_what_remains(
    text: str, found: list[tuple[float, str]]
) -> None:
    assert [(part.value, part.unit) for part in parse(text)] == found


@pytest.mark.parametrize(
    "text", ["much", "5%%", "-1%", "0", "0MB", "nan%", "inf%", "remaining/0", "remaining/x", "remaining", "2XB", "5%,,"]
)
def test_what_is_no_budget_is_refused_with_examples(registry: Registry, add: Add, text: str) -> None:
    with pytest.raises(SettingsError, match=rf"--budget '{text}' is not a valid budget\. Examples: 5% ") as caught:
        add("task", budget=text)
    assert caught.value.exit_code == 2
    assert registry.tasks() == ()


# What comes of it


def stored_bytes(registry: Registry, task: Task) -> dict[str, int]:
    """Bytes of each of the file's tensors, read from the file."""
    path = registry.home / "objects" / task.digest[:2] / f"{task.digest[2:]}.safetensors"
    with open_packed(path) as file:
        return {name: file.tensor(name).nbytes for name in file.names()}


CASES: dict[str, dict[str, Any]] = {
    "a share, fp32": {"method": "taps", "budget": "20%"},
    "a share, int4": {"method": "taps", "budget": "6%", "encoding": "int4"},
    "a share, in blocks": {"budget": "25%", "granularity": "block"},
    "a share, gated norms": {"budget": "10%", "norms": "gated"},
    "less than the norms, gated norms": {"budget": "1%", "norms": "gated"},
    "a share, by direction": {"budget": "3%"},
    "a share, by direction, int4": {"budget": "2%", "method": "taps-rank", "encoding": "int4"},
    "a share, by direction, int3": {"budget": "2%", "method": "taps-rank", "encoding": "int3"},
    "bytes": {"method": "taps", "budget": "200kB"},
    "bytes, int8": {"method": "taps", "budget": "100kB", "encoding": "int8"},
    "bytes, compressed": {"method": "taps", "budget": "100kB", "encoding": "int8+zstd"},
    "bytes, by direction": {"budget": "80kB", "method": "taps-rank", "encoding": "int8"},
    "parameters": {"method": "taps", "budget": "50k"},
    "parameters, by direction": {"budget": "20k", "method": "taps-rank"},
    "several": {"method": "taps", "budget": "20%,150kB,60k"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_result_never_takes_more_than_its_budget(registry: Registry, add: Add, case: str) -> None:
    settings = {"epochs": 2, **CASES[case]}
    task = add("task", **settings)
    tensors = stored_bytes(registry, task)
    head = sum(size for name, size in tensors.items() if name.startswith("fc."))
    assert head == 4 * HEAD
    for part in parse(settings["budget"]):
        used, allowed = {
            "%": (sum(tensors.values()) - head, part.value * 4 * BACKBONE),
            "bytes": (task.bytes, part.value),
            "parameters": (task.params.total, part.value),
        }[part.unit]
        assert used <= allowed
        if len(parse(settings["budget"])) == 1 and "compressed" not in case:
            assert used > 0.4 * allowed, "most of a budget that layers fit into is used"
    assert registry.verify(deep=True) == ()


@pytest.mark.parametrize("method", ["taps", "taps-rank"])
def test_a_run_of_one_step_keeps_to_its_budget_too(add: Add, method: str) -> None:
    task = add("task", method=method, budget="5%,80kB", epochs=1, batch_size=64)
    assert task.bytes <= 80_000
    assert sum(layer.bytes for layer in task.layers) <= 0.05 * 4 * BACKBONE


@pytest.mark.parametrize(
    ("method", "first", "then"),
    [
        ("taps", "20%", "10%"),
        ("taps", "20%", ""),
        ("taps", "", "10%"),
        ("taps-rank", "5%", "2%"),
    ],
)
def test_a_run_resumed_under_another_budget_trains_again_and_keeps_to_it(
    registry: Registry, add: Add, method: str, first: str, then: str
) -> None:
    """The gates were fixed when it stopped, after three of four epochs."""
    with pytest.raises(Interrupted):
        add("task", method=method, budget=first, epochs=4, progress=Listener(stop=3))
    task = registry.resume_task("task", budget=then)
    assert task.settings["budget"] == then
    allowed = parse(then)[0].value if then else 1.1
    assert 4000 < sum(layer.bytes for layer in task.layers) <= allowed * 4 * BACKBONE
    assert registry.verify(deep=True) == ()


def test_the_backbone_is_as_large_as_the_tests_say() -> None:
    model = timm.create_model(MODEL, num_classes=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == BACKBONE


def test_what_cannot_fit_is_refused_before_anything_is_written(registry: Registry, add: Add) -> None:
    with pytest.raises(
        BudgetError, match=r"--budget 1% leaves 14,907 bytes for 'task'.*16,760: 1,853 too many.*--norms"
    ):
        add("task", budget="1%")
    with pytest.raises(BudgetError, match=r"what it stores at most takes .* another --method, such as taps"):
        add("task", budget="5%", method="full")
    assert registry.tasks() == ()
    assert registry.runs() == ()


def test_a_method_without_gates_may_have_a_budget_that_it_fits(add: Add) -> None:
    assert add("task", budget="2%", method="norm-only").params.weights == 0


def test_options_that_a_budget_decides_are_refused_beside_it(add: Add) -> None:
    with pytest.raises(SettingsError, match="--method taps within a budget does not accept --penalty, --sparsity"):
        add("task", method="taps", budget="20%", sparsity=2.0, penalty="uniform")


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({}, "taps"),
        ({"budget": "5%"}, "taps-rank"),
        ({"budget": "5%", "norms": "frozen"}, "taps-rank"),
        ({"budget": "5%", "norms": "gated"}, "taps"),
        ({"budget": "5%", "granularity": "block"}, "taps"),
        ({"budget": "5%", "method": "taps"}, "taps"),
    ],
)
def test_the_method_unless_one_is_named(settings: dict[str, Any], method: str) -> None:
    assert TaskSettings.of(settings).method == method


def test_a_run_keeps_its_method_when_it_gets_a_budget() -> None:
    assert TaskSettings().changed({"budget": "5%"}, Taps()).method == "taps"


def test_a_method_that_spends_a_budget_wants_one(add: Add) -> None:
    with pytest.raises(SettingsError, match="--method taps-rank spends a budget: say which, such as --budget 1%"):
        add("task", method="taps-rank")


def test_a_part_of_what_remains_is_put_into_numbers_and_kept_to(registry: Registry, add: Add) -> None:
    with pytest.raises(
        BudgetError, match="neither the registry nor the base 'base' has one: `taps-registry budget set"
    ):
        add("task", budget="remaining/2")
    registry.set_budget(max_bytes=500_000)
    registry.set_budget(base="base", max_params=100_000)
    first = add("first", budget="remaining/2", epochs=2)
    assert first.settings["budget"] == "250000B,50000"
    assert first.bytes <= 250_000
    assert first.params.total <= 50_000
    second = add("second", budget="remaining/1", epochs=2)
    assert second.settings["budget"] == f"{500_000 - first.bytes}B,{100_000 - first.params.total}"
    registry.set_budget(max_bytes=first.bytes)
    with pytest.raises(BudgetError, match="has 0 bytes left: nothing that could be divided by 2"):
        add("third", budget="remaining/2")


@pytest.mark.parametrize("limit", [{"max_bytes": 100_000}, {"max_params": 25_000}])
def test_a_budget_gives_way_to_what_the_registrys_budgets_have_left(
    registry: Registry, add: Add, limit: dict[str, int]
) -> None:
    """Or the result would be refused when it is finished."""
    registry.set_budget(base="base", **limit)
    listener = Listener()
    task = add("task", budget="30%", epochs=2, progress=listener)
    left = "100000B" if "max_bytes" in limit else "25000"
    assert task.settings["budget"] == f"30%,{left}"
    assert task.bytes <= limit.get("max_bytes", task.bytes)
    assert task.params.total <= limit.get("max_params", task.params.total)
    assert [note for note in listener.notes if "less than --budget 30% allows: 'task' keeps to that as well." in note]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"budget": "2%"}, "56% of --budget 2% goes to what 'task' stores in any case"),
        ({"budget": "2%"}, "What helps: a larger budget, an --encoding of fewer bits, --norms frozen."),
        ({"budget": "5k"}, "What helps: a larger budget, --norms frozen."),
        ({"budget": "3%,25kB"}, "of --budget 25kB goes"),
        ({"budget": "4kB", "norms": "frozen"}, "What helps: a larger budget, an --encoding of fewer bits."),
        ({"budget": "3%"}, ""),
        ({"budget": "2%", "encoding": "int4"}, ""),
        ({"budget": "1%"}, ""),  # too small for them: an error says so
        ({"budget": "102%", "method": "full"}, ""),  # does not steer: it stores the same with any budget
    ],
)
def test_a_budget_that_leaves_little_for_layers_is_said_before_training(
    registry: Registry, images: Path, told: dict[str, str], said: str
) -> None:
    listener = Listener()
    registry.estimate("task", "base", images, progress=listener, **{"workers": 0, **told})
    notes = [note for note in listener.notes if "little is left for its layers" in note]
    assert len(notes) == bool(said)
    assert not said or said in notes[0]


def test_a_resumed_run_does_not_say_again_that_little_is_left_for_layers(registry: Registry, add: Add) -> None:
    listener = Listener(stop=1)
    with pytest.raises(Interrupted):
        add("task", budget="2%", epochs=2, progress=listener)
    again = Listener()
    registry.resume_task("task", progress=again)
    assert not [note for note in again.notes if "little is left" in note]


def test_a_budget_within_what_is_left_stays_as_it_was_said(registry: Registry, add: Add) -> None:
    registry.set_budget(base="base", max_bytes=400_000, max_params=2_000_000)
    listener = Listener()
    assert add("task", budget="10%", progress=listener).settings["budget"] == "10%"
    assert not [note for note in listener.notes if "left" in note]


# When a run is resumed


class Watches(Progress):
    """Notes which epochs were trained."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def epoch(self, result: EpochResult) -> None:
        self.epochs.append(result.epoch)


@pytest.mark.parametrize(
    ("told", "helps"),
    [
        ({"budget": "1k"}, "a larger budget, --norms frozen"),
        ({"budget": "1%"}, "a larger budget, an --encoding of fewer bits, --norms frozen"),
        ({"budget": "250", "norms": "frozen"}, "a larger budget"),
        ({"budget": "1%", "method": "full"}, "a larger budget, another --method, such as taps"),
    ],
)
def test_what_cannot_fit_says_what_helps(registry: Registry, add: Add, told: dict[str, str], helps: str) -> None:
    with pytest.raises(BudgetError, match=rf"too many\. What helps: {helps}\.$"):
        add("task", **told)


def test_what_cannot_fit_is_refused_before_a_run_goes_on(registry: Registry, add: Add) -> None:
    with pytest.raises(Interrupted):
        add("task", budget="5%", epochs=4, progress=Listener(stop=1))
    with pytest.raises(BudgetError, match=r"--budget 1% leaves 14,907 bytes for 'task'"):
        registry.resume_task("task", budget="1%")
    (run,) = registry.runs()
    assert (run.state, run.settings["budget"], run.epoch) == ("interrupted", "5%", 1)
    assert registry.resume_task("task").settings["budget"] == "5%"


def test_another_budget_heeds_what_the_registrys_budgets_have_left_by_then(registry: Registry, add: Add) -> None:
    with pytest.raises(Interrupted):
        add("task", budget="20%", epochs=2, progress=Listener(stop=1))
    registry.set_budget(base="base", max_bytes=100_000)
    listener = Listener()
    task = registry.resume_task("task", budget="30%", progress=listener)
    assert task.settings["budget"] == "30%,100000B"
    assert task.bytes <= 100_000
    assert [note for note in listener.notes if "less than --budget 30% allows" in note]


@pytest.mark.parametrize(("first", "then", "again"), [("int4", "fp32", True), ("int4", "int4+zstd", False)])
def test_a_budget_is_spent_anew_in_an_encoding_of_other_sizes(
    registry: Registry, add: Add, first: str, then: str, again: bool
) -> None:
    """Directions were chosen to fit in four bits each; in eight times as many, fewer fit."""
    with pytest.raises(Interrupted):
        add("task", budget="5%", encoding=first, epochs=4, progress=Listener(stop=3))
    watch = Watches()
    task = registry.resume_task("task", encoding=then, progress=watch)
    assert watch.epochs == ([1, 2, 3, 4] if again else [4])
    assert 0.04 < sum(layer.bytes for layer in task.layers) / (4 * BACKBONE) <= 0.05


def test_a_run_that_leaves_auto_leaves_its_tolerance_too() -> None:
    begun = TaskSettings(encoding="auto", encoding_tolerance=0.5)
    assert begun.changed({"encoding": "int4"}, Taps()).encoding_tolerance == TaskSettings.encoding_tolerance
    assert begun.changed({"encoding": "auto"}, Taps()).encoding_tolerance == 0.5
    assert begun.changed({"epochs": 3}, Taps()).encoding_tolerance == 0.5


def test_the_estimate_says_what_a_budget_refuses(registry: Registry, images: Any) -> None:
    found = registry.estimate("task", "base", images, tracker="none", budget="1%")
    assert found.refused.startswith("--budget 1% leaves 14,907 bytes for 'task'")
    assert [(part.budget, part.amount, part.unit) for part in found.allowed] == [("1%", 14_907, "bytes")]


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
