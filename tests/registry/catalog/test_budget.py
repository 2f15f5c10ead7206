"""Budgets: what does not fit is refused before training, or kept until there is room for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from taps_registry import Registry
from taps_registry.registry.errors import BudgetError, NotFoundError, SettingsError
from taps_registry.registry.records import BudgetUse, Task
from taps_registry.registry.training.progress import EpochResult, Progress

Add = Callable[..., Task]

HEAD = 3 * 96 + 3  # test_resnet has 96 features, the images have 3 classes
NORMS = 4160  # scale, shift, mean and variance of its 15 batch norms
COUNTERS = 15 * 8  # bytes: each batch norm counts its batches in 64 bits
LEAST = {"max_params": NORMS + HEAD, "max_bytes": 4 * (NORMS + HEAD) + COUNTERS}
WHAT = {"max_params": "parameters", "max_bytes": "bytes"}


class Epochs(Progress):
    """Counts the epochs that were trained."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def epoch(self, result: EpochResult) -> None:
        self.seen.append(result.epoch)


def size(task: Task, limit: str) -> int:
    return task.params.total if limit == "max_params" else task.bytes


@pytest.fixture
def trained(registry: Registry, add: Add) -> Task:
    """A task with every gate open, as any other one here would be; it is gone again, and only its sizes are left."""
    task = add("trained")
    registry.remove("trained")
    assert task.open_layers == task.gated_layers
    return task


# Before training


@pytest.mark.parametrize("base", ["base", None])
@pytest.mark.parametrize("limit", list(LEAST))
def test_a_budget_below_the_cheapest_outcome_refuses_before_training_and_leaves_nothing(
    registry: Registry, add: Add, limit: str, base: str | None
) -> None:
    registry.set_budget(base=base, **{limit: LEAST[limit] - 1})
    progress = Epochs()
    scope = "of the base 'base'" if base else "of the registry"
    said = (
        f"The budget {scope} is exceeded by 1 {WHAT[limit].removesuffix('s')}: limit {LEAST[limit] - 1:,}, used 0, "
        f"and 'small' needs at least {LEAST[limit]:,}."
    )
    with pytest.raises(BudgetError, match=re.escape(said)):
        add("small", progress=progress)
    assert progress.seen == []
    assert registry.tasks() == ()
    assert registry.runs() == ()
    assert list((registry.home / "runs").iterdir()) == []
    assert registry.budgets()[0].used_bytes == 0

    registry.clear_budget(base=base)
    assert add("small").name == "small"


@pytest.mark.parametrize(("method", "least"), [("head-only", HEAD), ("norm-only", NORMS + HEAD)])
def test_a_method_may_fill_a_budget_to_the_last_parameter(
    registry: Registry, add: Add, method: str, least: int
) -> None:
    registry.set_budget(max_params=least - 1)
    with pytest.raises(BudgetError, match=f"exceeded by 1 parameter: .* needs at least {least:,}"):
        add("fits", method=method)
    registry.set_budget(max_params=least)
    assert add("fits", method=method).params.total == least
    assert registry.budgets() == (BudgetUse(None, None, least, registry.task("fits").bytes, least),)


def test_the_cheapest_outcome_of_full_fine_tuning_is_all_of_it(registry: Registry, add: Add, trained: Task) -> None:
    registry.set_budget(max_params=trained.params.total - 1)
    with pytest.raises(BudgetError, match=f"exceeded by 1 .* needs at least {trained.params.total:,}"):
        add("copy", method="full")
    assert registry.tasks() == ()


def test_norms_that_stay_the_bases_are_no_part_of_the_cheapest_outcome(registry: Registry, add: Add) -> None:
    registry.set_budget(max_params=HEAD - 1)
    with pytest.raises(BudgetError, match=f"exceeded by 1 .* needs at least {HEAD:,}"):
        add("gated", norms="gated")


# After training


@pytest.mark.parametrize("base", ["base", None])
@pytest.mark.parametrize("limit", list(LEAST))
def test_a_trained_result_over_budget_is_kept_until_the_budget_is_raised_as_the_message_says(
    registry: Registry, add: Add, trained: Task, limit: str, base: str | None
) -> None:
    needed = size(trained, limit)
    registry.set_budget(base=base, **{limit: needed - 1})
    with pytest.raises(BudgetError, match=f"by 1 .* 'late' needs {needed:,}.*add-task late --resume") as caught:
        add("late")
    option = "--base base " if base else ""
    name = limit.replace("_", "-")
    assert f"`taps-registry budget set {option}--{name} {needed}`" in str(caught.value)

    (run,) = registry.runs("late")
    assert (run.state, run.epoch) == ("over-budget", 1)
    assert "exceeded by 1 " in run.error
    assert registry.task("late").state == "training"
    assert registry.budgets()[0].used_params == 0
    with pytest.raises(BudgetError, match="exceeded by 1 "):
        registry.resume_task("late")
    assert registry.runs("late")[0].state == "over-budget"

    registry.set_budget(base=base, **{limit: needed})
    progress = Epochs()
    task = registry.resume_task("late", progress=progress)
    assert progress.seen == []
    assert (task.state, task.digest) == ("ready", trained.digest)
    assert (registry.runs("late")[0].id, registry.runs("late")[0].state) == (run.id, "finished")
    use = registry.budgets()[0]
    assert (use.used_bytes, use.used_params) == (task.bytes, task.params.total)


def test_a_resumed_run_trains_nothing_that_no_budget_has_room_for(registry: Registry, add: Add, trained: Task) -> None:
    registry.set_budget(max_params=trained.params.total - 1)
    with pytest.raises(BudgetError):
        add("late")
    registry.set_budget(max_params=LEAST["max_params"] - 1)
    progress = Epochs()
    with pytest.raises(BudgetError, match="'late' needs at least"):
        registry.resume_task("late", epochs=2, progress=progress)
    assert progress.seen == []
    assert registry.runs("late")[0].state == "over-budget"


def test_a_result_over_a_budget_of_bytes_fits_in_half_as_many_without_training_again(
    registry: Registry, add: Add, trained: Task
) -> None:
    registry.set_budget(max_bytes=trained.bytes * 3 // 4)
    with pytest.raises(BudgetError, match="another --encoding"):
        add("half")
    progress = Epochs()
    task = registry.resume_task("half", encoding="bf16", progress=progress)
    assert progress.seen == []
    assert (task.state, task.encoding, task.params) == ("ready", "bf16", trained.params)
    assert task.bytes < trained.bytes * 0.55
    assert registry.verify(deep=True) == ()


def test_a_result_over_budget_takes_no_room_in_the_store(registry: Registry, add: Add) -> None:
    """It waits in the folder of its run."""
    before = sorted((registry.home / "objects").rglob("*.safetensors"))
    registry.set_budget(max_params=LEAST["max_params"])
    with pytest.raises(BudgetError, match="exceeded by"):
        add("late")
    assert sorted((registry.home / "objects").rglob("*.safetensors")) == before


def test_a_result_over_budget_can_be_given_up(registry: Registry, add: Add, trained: Task) -> None:
    registry.set_budget(max_params=trained.params.total - 1)
    with pytest.raises(BudgetError):
        add("late")
    registry.remove("late")
    registry.set_budget(max_params=trained.params.total)
    assert add("late").state == "ready"


# What counts


def test_the_budgets_of_the_base_and_of_the_registry_both_count(registry: Registry, add: Add) -> None:
    registry.add_base("other", "test_resnet", random_init=True, input_size=32, seed=1)
    least = LEAST["max_params"]
    registry.set_budget(max_params=3 * least)
    registry.set_budget(base="base", max_params=least)
    assert add("one", method="norm-only").params.total == least
    with pytest.raises(BudgetError, match=f"of the base 'base' is exceeded .* limit {least:,}, used {least:,}"):
        add("two", method="norm-only")

    data = registry.task("one").settings["data"]
    quick = {**registry.task("one").settings, "data": data}
    for name in ("three", "four"):
        registry.add_task(name, "other", **quick)
    with pytest.raises(BudgetError, match=f"of the registry is .* limit {3 * least:,}, used {3 * least:,}"):
        registry.add_task("five", "other", **quick)
    uses = {use.base: use.used_params for use in registry.budgets()}
    assert uses == {None: 3 * least, "base": least}

    registry.remove("four")
    assert registry.add_task("five", "other", **quick).state == "ready"
    assert {use.base: use.used_params for use in registry.budgets()} == uses


def test_a_task_that_is_removed_gives_its_room_back(registry: Registry, add: Add) -> None:
    first = add("one", method="norm-only")
    registry.set_budget(max_bytes=3 * first.bytes // 2)
    assert registry.budgets()[0].used_bytes == first.bytes == (registry.home / path_of(first)).stat().st_size
    with pytest.raises(BudgetError, match="remove a task"):
        add("two", method="norm-only")
    registry.remove("one")
    assert registry.budgets()[0].used_bytes == 0
    assert add("two", method="norm-only").state == "ready"


def path_of(task: Task) -> str:
    return f"objects/{task.digest[:2]}/{task.digest[2:]}.safetensors"


def test_bases_and_tasks_in_training_do_not_count(registry: Registry, add: Add, trained: Task) -> None:
    registry.set_budget(max_params=trained.params.total - 1, max_bytes=10**9)
    with pytest.raises(BudgetError):
        add("late")
    assert registry.budgets() == (BudgetUse(None, 10**9, trained.params.total - 1, 0, 0),)


# Setting them


def test_a_budget_replaces_the_one_before_and_can_be_cleared(registry: Registry) -> None:
    registry.set_budget(base="base", max_bytes=5, max_params=6)
    uses = registry.set_budget(base="base", max_params=7)
    assert uses == registry.budgets() == (BudgetUse("base", None, 7, 0, 0),)
    registry.set_budget(max_bytes=2**40)
    assert [use.base for use in registry.budgets()] == [None, "base"]
    assert registry.clear_budget(base="base") is True
    assert registry.clear_budget(base="base") is False
    assert registry.budgets() == (BudgetUse(None, 2**40, None, 0, 0),)
    assert registry.clear_budget() is True
    assert registry.budgets() == ()


def test_a_budget_of_nothing_lets_nothing_in(registry: Registry, add: Add) -> None:
    registry.set_budget(max_params=0)
    with pytest.raises(BudgetError, match=f"exceeded by {HEAD:,} parameters"):
        add("one", method="head-only")


@pytest.mark.parametrize(
    "limits", [{}, {"max_bytes": -1}, {"max_params": -1}, {"max_bytes": 5, "max_params": -1}, {"max_bytes": None}]
)
def test_a_budget_needs_a_limit_from_zero_upwards(registry: Registry, limits: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="--max-bytes or --max-params, at least 0"):
        registry.set_budget(**limits)
    assert registry.budgets() == ()


def test_the_budget_of_a_base_that_is_not_there_is_not_found(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match=r"no base 'bas'. Did you mean 'base'"):
        registry.set_budget(base="bas", max_bytes=1)
    with pytest.raises(NotFoundError, match=r"no base 'bas'. Did you mean 'base'"):
        registry.clear_budget(base="bas")


def test_a_budget_lowered_below_what_is_used_keeps_what_is_there(registry: Registry, add: Add) -> None:
    task = add("one", method="norm-only")
    registry.set_budget(base="base", max_params=1)
    assert registry.budgets() == (BudgetUse("base", None, 1, task.bytes, task.params.total),)
    assert registry.task("one").state == "ready"
    with pytest.raises(BudgetError, match=f"limit 1, used {task.params.total:,}"):
        add("two", method="head-only")
