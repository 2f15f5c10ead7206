"""``--budget``: what it may say, and that results keep to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm

from taps_registry import Registry
from taps_registry.plugins.methods.taps import Taps
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
