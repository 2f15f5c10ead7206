"""VMT-Adapter: projections that a set of tasks has in common, trained once, stored once, and never changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from taps_registry import Registry
from taps_registry.cli.main import _run
from taps_registry.cli.session import Session
from taps_registry.plugins.manager import PluginManager
from taps_registry.registry.errors import (
    BudgetError,
    BusyError,
    Interrupted,
    PluginError,
    SettingsError,
    TrainingError,
)
from taps_registry.registry.records import Task
from taps_registry.registry.store.packed import open_packed
from taps_registry.registry.training import adding
from taps_registry.registry.training.progress import EpochResult, Progress

BLOCKS, WIDTH, RANK = 6, 64, 4  # of test_vit, and --rank here
QUICK: dict[str, Any] = {"epochs": 1, "augment": "none", "tracker": "none", "workers": 0, "batch_size": 8}
VMT: dict[str, Any] = {**QUICK, "method": "vmt-adapter", "rank": RANK}
METHODS = {"vmt-adapter": 2, "vmt-adapter-lite": 1}  # projections a block
NORMS = 13 * 2 * WIDTH
HEAD = 3 * WIDTH + 3
OWN = 2 * RANK * BLOCKS
PROJECTIONS = 2 * WIDTH * RANK * BLOCKS


class Stops(Progress):
    """Presses Ctrl-C after the first epoch."""

    def epoch(self, result: EpochResult) -> None:
        raise KeyboardInterrupt


def new_registry(folder: Path) -> Registry:
    registry = Registry.init(folder / "home")
    registry.add_base("base", "test_vit", random_init=True, input_size=32)
    return registry


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """The folder of a registry where two tasks of different images have one set of projections; nobody changes it."""
    folder = tmp_path_factory.mktemp("vmt")
    with new_registry(folder) as registry:
        registry.add_task("first", "base", images, lr=5e-3, **VMT)
        registry.add_task("second", "base", images, lr=5e-3, seed=1, **VMT)
    return folder / "home"


@pytest.fixture
def copied(pair: Path, tmp_path: Path) -> Iterator[Registry]:
    """A copy of it, to be changed."""
    with Registry.open(shutil.copytree(pair, tmp_path / "copy")) as registry:
        yield registry


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Registry]:
    with new_registry(tmp_path) as registry:
        yield registry


def path_of(registry: Registry, digest: str) -> Path:
    return registry.home / "objects" / digest[:2] / f"{digest[2:]}.safetensors"


def tensors(registry: Registry, digest: str) -> dict[str, Tensor]:
    return load_file(path_of(registry, digest))


def own_tensors(registry: Registry, task: str) -> dict[str, Tensor]:
    with open_packed(path_of(registry, registry.task(task).digest)) as file:
        return {name: file.tensor(name) for name in file.names()}


def common_of(registry: Registry, task: str) -> str:
    """The digest of the object that a task's artifact says it needs."""
    with open_packed(path_of(registry, registry.task(task).digest)) as file:
        found: str = json.loads(file.text)["common"]
        return found


@dataclass(frozen=True)
class State:
    """All that must not change of a task."""

    file: str
    model: str
    logits: bytes


def state(registry: Registry, task: str) -> State:
    model = registry.load(task, device="cpu").model
    whole = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        whole.update(name.encode() + tensor.contiguous().numpy().tobytes())
    noise = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = model(noise).numpy().tobytes()
    file = hashlib.sha256(path_of(registry, registry.task(task).digest).read_bytes()).hexdigest()
    return State(file, whole.hexdigest(), logits)


def interrupted(registry: Registry, name: str, images: Path, **settings: Any) -> None:
    with pytest.raises(Interrupted):
        registry.add_task(name, "base", images, progress=Stops(), **{**VMT, "epochs": 2, **settings})


# The formula


def extended(method: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("test_vit", num_classes=3, img_size=32).eval()
    PluginManager().method(method).extend(model, {"rank": RANK})
    return model


@pytest.mark.parametrize("method", METHODS)
def test_beside_each_mlp_stands_the_formula_of_the_paper(method: str) -> None:
    model = extended(method)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("vmt_adapter"):
                parameter.copy_(torch.randn_like(parameter))
    for block, adapter in zip(model.blocks, model.vmt_adapter, strict=True):
        x, mlp = torch.randn(2, 5, WIDTH), block.mlp
        alone = mlp.fc2(functional.gelu(mlp.fc1(x)))
        down = adapter.down.weight
        up = down.T if method.endswith("lite") else adapter.up.weight
        beside = functional.gelu(adapter.scale * (x @ down.T) + adapter.shift) @ up.T
        torch.testing.assert_close(mlp(x), alone + beside)
        assert beside.abs().mean() > 0.1
    assert {name.rpartition(".")[0] for name, _ in model.vmt_adapter.named_parameters() if name.endswith("weight")} == {
        f"{index}.{matrix}" for index in range(BLOCKS) for matrix in ("down", "up")[: METHODS[method]]
    }


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_starts_as_nothing_and_has_a_gradient_to_leave_it(method: str) -> None:
    model = extended(method)
    noise = torch.rand(2, 3, 32, 32)
    before = timm.create_model("test_vit", num_classes=3, img_size=32)
    before.load_state_dict({name: t for name, t in model.state_dict().items() if not name.startswith("vmt")})
    assert torch.equal(model(noise), before.eval()(noise))
    functional.cross_entropy(model(noise), torch.tensor([0, 1])).backward()
    assert all(any(parameter.grad.any() for parameter in adapter.parameters()) for adapter in model.vmt_adapter)


def test_a_network_without_transformer_blocks_is_refused(registry: Registry, images: Path) -> None:
    for verb in (registry.add_task, registry.estimate):
        with pytest.raises(PluginError, match="--method vmt-adapter needs transformer blocks with an MLP; ResNet has"):
            verb("task", "base", images, **VMT)
    assert registry.tasks() == ()
    assert registry.runs() == ()


# The first task trains the projections, the others have them


@pytest.mark.parametrize("method", METHODS)
def test_projections_are_an_object_of_their_own_and_tasks_hold_the_rest(
    empty: Registry, images: Path, method: str
) -> None:
    for seed, name in enumerate(("first", "second")):
        task = empty.add_task(name, "base", images, **{**VMT, "method": method, "lr": 5e-3, "seed": seed})
        assert task.set == empty.task(name).set == method
        assert (task.params.weights, task.params.norms, task.params.head) == (OWN, NORMS, HEAD)
    held = [set(own_tensors(empty, name)) for name in ("first", "second")]
    adapters = {f"vmt_adapter.{block}.{part}" for block in range(BLOCKS) for part in ("scale", "shift")}
    norms = {f"blocks.{block}.norm{which}" for block in range(BLOCKS) for which in (1, 2)} | {"norm"}
    plain = {f"{module}.{part}" for module in (*norms, "head") for part in ("weight", "bias")}
    assert held == [adapters | plain] * 2
    digest = common_of(empty, "first")
    assert common_of(empty, "second") == digest == hashlib.sha256(path_of(empty, digest).read_bytes()).hexdigest()
    matrices = ("down", "up")[: METHODS[method]]
    assert set(tensors(empty, digest)) == {f"vmt_adapter.{b}.{m}.weight" for b in range(BLOCKS) for m in matrices}


def test_the_first_task_trains_the_projections_and_later_ones_leave_them_to_the_last_bit(pair: Path) -> None:
    with Registry.open(pair) as registry:
        stored = tensors(registry, common_of(registry, "first"))
        fresh = dict(extended("vmt-adapter").state_dict())
        assert all(tensor.any() for name, tensor in stored.items() if "up" in name), "they began as zeros"
        assert not any(torch.equal(tensor, fresh[name]) for name, tensor in stored.items())
        for task in ("first", "second"):
            model = registry.load(task, device="cpu").model.state_dict()
            assert all(torch.equal(model[name], tensor) for name, tensor in stored.items())
        own = [own_tensors(registry, task) for task in ("first", "second")]
        assert not any(torch.equal(own[0][name], own[1][name]) for name in own[0] if name.startswith("vmt"))


def test_adding_and_removing_tasks_of_the_set_changes_no_bit_of_another(copied: Registry, images: Path) -> None:
    before, digest = {name: state(copied, name) for name in ("first", "second")}, common_of(copied, "first")
    whole = path_of(copied, digest).read_bytes()
    assert before["first"].logits != before["second"].logits
    copied.add_task("third", "base", images, **{**VMT, "seed": 2})
    assert {name: state(copied, name) for name in before} == before
    third = state(copied, "third")
    copied.remove("first")
    copied.gc()
    assert (state(copied, "second"), state(copied, "third")) == (before["second"], third)
    assert path_of(copied, digest).read_bytes() == whole
    assert copied.verify(deep=True) == ()


# What it costs


def test_cost_counts_the_projections_once_and_names_who_has_them(pair: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Registry.open(pair) as registry:
        (base,) = registry.cost().bases
        (common,) = base.sets
        file = path_of(registry, common_of(registry, "first")).stat().st_size
        tasks = [registry.task(name) for name in ("first", "second")]
        disk = sum(path.stat().st_size for path in (registry.home / "objects").rglob("*.safetensors"))
    assert (common.name, common.method, common.tasks) == ("vmt-adapter", "vmt-adapter", ("first", "second"))
    assert (common.params, common.bytes) == (PROJECTIONS, file)
    assert {cost.task: cost.set for cost in base.tasks} == {"first": "vmt-adapter", "second": "vmt-adapter"}
    assert base.total.bytes == disk == base.bytes + sum(task.bytes for task in tasks) + file
    assert base.total.params == base.params + sum(task.params.total for task in tasks) + PROJECTIONS
    backbone = base.tasks[0].params.weights + base.tasks[0].params.norms
    shares = 2 * backbone + PROJECTIONS
    assert base.total.multiple == pytest.approx(1 + shares * base.tasks[0].share_of_base / backbone)
    assert _run(["--home", str(pair), "cost"], Session()) == 0
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "stored once" in line]
    assert line.startswith("vmt-adapter: 3.1 k parameters, ")
    assert line.endswith("stored once for first, second.")


def test_the_cost_of_one_task_names_all_who_share_its_projections(pair: Path) -> None:
    with Registry.open(pair) as registry:
        (base,) = registry.cost(["second"]).bases
        assert [cost.task for cost in base.tasks] == ["second"]
        assert base.sets[0].tasks == ("first", "second")
        assert base.total.params == base.params + registry.task("second").params.total + PROJECTIONS


def test_budgets_count_the_projections_once(copied: Registry, images: Path) -> None:
    tasks = [copied.task(name) for name in ("first", "second")]
    file = path_of(copied, common_of(copied, "first")).stat().st_size
    copied.set_budget(max_bytes=10**9, base="base")
    (use,) = copied.budgets()
    assert use.used_params == sum(task.params.total for task in tasks) + PROJECTIONS
    assert use.used_bytes == sum(task.bytes for task in tasks) + file
    copied.set_budget(max_params=use.used_params + OWN + NORMS + HEAD, base="base")
    copied.add_task("third", "base", images, **VMT)
    assert copied.budgets()[0].used_params == copied.budgets()[0].max_params
    for name in ("first", "third"):
        copied.remove(name)
    assert copied.budgets()[0].used_params == tasks[0].params.total + PROJECTIONS
    copied.remove("second")
    assert (copied.budgets()[0].used_params, copied.budgets()[0].used_bytes) == (0, 0)


def test_the_first_task_needs_room_for_the_projections_before_and_after_training(empty: Registry, images: Path) -> None:
    least = OWN + NORMS + HEAD + PROJECTIONS
    empty.set_budget(max_params=least - 1)
    with pytest.raises(BudgetError, match=f"exceeded by 1 .* 'first' needs at least {least:,}"):
        empty.add_task("first", "base", images, **VMT)
    assert empty.tasks() == ()
    empty.set_budget(max_bytes=4 * least)
    with pytest.raises(BudgetError, match=r"exceeded by [0-9,]+ .* 'first' needs [0-9,]+"):
        empty.add_task("first", "base", images, **VMT)  # the headers of both files come on top
    assert [path.name for path in (empty.home / "objects").rglob("*.safetensors")] == [
        path_of(empty, empty.base("base").object).name
    ]
    empty.set_budget(max_params=least)
    assert empty.resume_task("first").params.total + PROJECTIONS == empty.budgets()[0].used_params == least


def test_two_sets_of_equal_projections_are_one_object_that_stays_while_either_is_there(
    empty: Registry, images: Path
) -> None:
    for name in ("one", "other"):
        empty.add_task(name, "base", images, **{**VMT, "set": f"set-{name}"})
    digest = common_of(empty, "one")
    assert common_of(empty, "other") == digest
    empty.remove("one")
    assert f"object {digest}" not in empty.gc().removed
    assert empty.verify(deep=True) == ()
    empty.remove("other")
    assert f"object {digest}" in empty.gc().removed


def test_the_total_is_what_is_on_the_disk_if_two_sets_have_one_object(empty: Registry, images: Path) -> None:
    for name in ("one", "other"):
        empty.add_task(name, "base", images, **{**VMT, "set": f"set-{name}"})
    disk = sum(path.stat().st_size for path in (empty.home / "objects").rglob("*.safetensors"))
    assert empty.cost().bases[0].total.bytes == disk


# What keeps the object, and what takes it


def test_gc_keeps_the_projections_until_the_last_task_of_the_set_is_gone(copied: Registry, images: Path) -> None:
    digest = common_of(copied, "first")
    interrupted(copied, "third", images, seed=2)
    for name in ("first", "second"):
        copied.remove(name)
        assert f"object {digest}" not in copied.gc().removed
    assert copied.resume_task("third").set == "vmt-adapter"
    assert common_of(copied, "third") == digest
    assert copied.verify(deep=True) == ()
    copied.remove("third")
    assert f"object {digest}" in copied.gc(dry_run=True).removed
    assert path_of(copied, digest).exists()
    copied.gc()
    assert not path_of(copied, digest).exists()
    assert [path.stem for path in (copied.home / "objects").rglob("*.safetensors")] == [copied.base("base").object[2:]]


DAMAGE: dict[str, tuple[Callable[[Path], object], bool, str]] = {
    "missing": (Path.unlink, False, "is missing"),
    "cut short": (lambda path: os.truncate(path, 100), False, "has 100 bytes instead of"),
    "changed": (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"), True, "is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_names_every_task_whose_projections_are_damaged(copied: Registry, images: Path, damage: str) -> None:
    harm, deep, text = DAMAGE[damage]
    copied.add_task("unconcerned", "base", images, **{**QUICK, "method": "head-only"})
    assert copied.verify(deep=True) == ()
    harm(path_of(copied, common_of(copied, "first")))
    problems = copied.verify(deep=deep)
    named = {problem.subject for problem in problems if problem.subject.startswith("task ")}
    assert named == {"task first", "task second"}
    assert all(text in problem.what for problem in problems)
    assert {problem.subject for problem in copied.verify(deep=True)} >= named


def test_a_task_whose_projections_are_gone_is_not_loaded_and_says_so(
    copied: Registry, images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    digest = common_of(copied, "first")
    path_of(copied, digest).unlink()
    assert _run(["--home", str(copied.home), "predict", "second", str(images / "dark" / "0.png")], Session()) == 9
    assert f"Object {digest} is missing" in capfd.readouterr().err


# Who may join


def test_a_second_task_has_to_wait_for_the_first_one(empty: Registry, images: Path) -> None:
    interrupted(empty, "first", images)
    refusal = r"The set 'vmt-adapter' has no projections yet: its first task, 'first', is in training.*--set NAME"
    with pytest.raises(BusyError, match=refusal):
        empty.add_task("second", "base", images, **VMT)
    assert [task.name for task in empty.tasks()] == ["first"]
    assert empty.add_task("other", "base", images, **VMT, set="others").set == "others"
    empty.resume_task("first")
    assert empty.add_task("second", "base", images, **VMT).set == "vmt-adapter"


def test_a_task_that_begins_while_the_first_one_trains_is_refused(empty: Registry, images: Path) -> None:
    refused: list[BusyError] = []

    class Hurries(Progress):
        def epoch(self, result: EpochResult) -> None:
            with pytest.raises(BusyError, match="'first', is in training") as caught:
                empty.add_task("second", "base", images, **VMT)
            refused.append(caught.value)

    empty.add_task("first", "base", images, progress=Hurries(), **VMT)
    assert len(refused) == 1
    assert [(task.name, task.state) for task in empty.tasks()] == [("first", "ready")]
    assert len(list((empty.home / "runs").iterdir())) == 1


@pytest.mark.parametrize("meanwhile", ["begun", "given up"])
def test_a_set_that_changes_between_reading_and_reserving_is_not_joined(
    empty: Registry, images: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """Else two tasks would each train projections for one set, or freeze some that nobody keeps."""
    if meanwhile == "given up":
        empty.add_task("first", "base", images, **VMT)
    prepare = adding.prepare

    def slowly(*arguments: Any) -> adding.Prepared:
        made = prepare(*arguments)
        monkeypatch.setattr(adding, "prepare", prepare)
        empty.remove("first") if meanwhile == "given up" else empty.add_task("first", "base", images, **VMT)
        return made

    monkeypatch.setattr(adding, "prepare", slowly)
    with pytest.raises(BusyError, match="Another process has changed the set 'vmt-adapter' in the meantime"):
        empty.add_task("second", "base", images, **VMT)
    assert [task.name for task in empty.tasks()] == (["first"] if meanwhile == "begun" else [])
    assert empty.add_task("second", "base", images, **VMT).set == "vmt-adapter"
    empty.gc()
    assert empty.verify(deep=True) == ()


@pytest.mark.parametrize(
    "other", [{"rank": RANK + 1}, {"method": "vmt-adapter-lite", "set": "vmt-adapter"}], ids=["rank", "method"]
)
def test_a_task_of_another_shape_is_refused_and_may_begin_a_set_of_its_own(
    copied: Registry, images: Path, other: dict[str, Any]
) -> None:
    refusal = f"The set 'vmt-adapter' uses --method vmt-adapter with --rank {RANK}.*another set with --set NAME"
    for verb in (copied.add_task, copied.estimate):
        with pytest.raises(SettingsError, match=refusal):
            verb("third", "base", images, **{**VMT, **other})
    assert [task.name for task in copied.tasks()] == ["first", "second"]
    task = copied.add_task("third", "base", images, **{**VMT, **other, "set": "others"})
    assert task.set == "others"
    assert common_of(copied, "third") != common_of(copied, "first")
    assert {cost.name: cost.tasks for cost in copied.cost().bases[0].sets} == {
        "others": ("third",),
        "vmt-adapter": ("first", "second"),
    }
    assert [cost.name for cost in copied.cost(["third"]).bases[0].sets] == ["others"]


def test_sets_of_one_name_on_two_bases_are_two_sets(copied: Registry, images: Path) -> None:
    copied.add_base("wider", "test_vit", random_init=True, input_size=32, seed=3)
    task = copied.add_task("elsewhere", "wider", images, **{**VMT, "rank": RANK + 1})
    assert task.set == "vmt-adapter"
    assert [common.tasks for base in copied.cost().bases for common in base.sets] == [
        ("first", "second"),
        ("elsewhere",),
    ]


@pytest.mark.parametrize("name", ["two words", "no/name", "x" * 200])
def test_a_set_is_named_as_a_task_is(empty: Registry, images: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="is not a valid"):
        empty.estimate("first", "base", images, **VMT, set=name)


# Interrupted, failed, given up


def test_an_interrupted_first_task_resumes_to_the_projections_of_an_undisturbed_one(
    empty: Registry, images: Path
) -> None:
    interrupted(empty, "first", images)
    resumed = empty.resume_task("first")
    other = empty.add_task("undisturbed", "base", images, **{**VMT, "epochs": 2, "set": "undisturbed"})
    assert resumed.digest == other.digest
    assert common_of(empty, "first") == common_of(empty, "undisturbed")
    assert empty.add_task("second", "base", images, **VMT).set == "vmt-adapter"


@pytest.mark.parametrize("how", ["interrupted", "failed", "over budget"])
def test_a_first_task_that_is_given_up_frees_the_name_of_its_set(empty: Registry, images: Path, how: str) -> None:
    if how == "interrupted":
        interrupted(empty, "first", images)
        empty.remove("first")
    elif how == "failed":
        with pytest.raises(TrainingError):
            empty.add_task("first", "base", images, **VMT, lr=1e30)
    else:
        empty.set_budget(max_bytes=4 * (OWN + NORMS + HEAD + PROJECTIONS))
        with pytest.raises(BudgetError, match="'first' needs"):
            empty.add_task("first", "base", images, **VMT)
        empty.remove("first")
        empty.clear_budget()
    assert empty.cost().bases[0].sets == ()
    other: Task = empty.add_task("other", "base", images, **{**VMT, "rank": RANK + 2})
    assert other.set == "vmt-adapter"


def test_an_interrupted_second_task_resumes_on_the_projections_it_began_with(copied: Registry, images: Path) -> None:
    digest = common_of(copied, "first")
    interrupted(copied, "third", images, seed=2)
    assert copied.task("third").set == "vmt-adapter"
    copied.remove("first")
    assert copied.resume_task("third").state == "ready"
    assert common_of(copied, "third") == digest
    again = copied.add_task("again", "base", images, **{**VMT, "epochs": 2, "seed": 2})
    assert again.digest == copied.task("third").digest
