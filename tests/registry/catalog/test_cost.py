"""Costs, held against counts that are made here, from timm's models and from the files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from taps_registry import Registry
from taps_registry.plugins.architectures import Partition
from taps_registry.plugins.encodings.floats import Float32
from taps_registry.plugins.manager import PluginManager
from taps_registry.plugins.methods import Stored
from taps_registry.registry.errors import Interrupted, NotFoundError, SettingsError
from taps_registry.registry.models.measure import parameters, roles
from taps_registry.registry.models.prices import Prices
from taps_registry.registry.records import BaseCost, Params, Task
from taps_registry.registry.store.packed import open_packed
from taps_registry.testing.home import Listener

QUICK = {"epochs": 1, "augment": "none", "tracker": "none", "workers": 0, "batch_size": 8}
SETTINGS: dict[str, dict[str, object]] = {
    "all-open": {},
    "some-open": {"epochs": 4, "sparsity": 4.0, "score_lr": 0.03},
    "same-again": {"method": "norm-only"},
    "norms": {"method": "norm-only"},
    "head": {"method": "head-only"},
    "copy": {"method": "full"},
    "half": {"encoding": "bf16"},
    "frozen": {"norms": "frozen"},
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Iterator[Registry]:
    """One task for each kind of settings on ``base``, and one task on ``other``; nobody changes them."""
    with Registry.init(tmp_path_factory.mktemp("costs") / "home") as made:
        for name, seed in (("base", 0), ("other", 1)):
            made.add_base(name, "test_resnet", random_init=True, input_size=32, seed=seed)
        for name, settings in SETTINGS.items():
            made.add_task(name, "base", images, **{**QUICK, **settings})
        made.add_task("elsewhere", "other", images, **{**QUICK, "method": "norm-only"})
        yield made


@pytest.fixture(scope="module")
def cost(registry: Registry) -> BaseCost:
    """Of the tasks on ``base``."""
    return registry.cost(base="base").bases[0]


@dataclass(frozen=True)
class Counted:
    """What a model holds, counted by torch's own classes; ``statistics`` are values of floating point only."""

    convs: int
    weights: int
    affine: int
    statistics: int
    head: int
    total: int


def counted(model: nn.Module) -> Counted:
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 1
    return Counted(
        convs=len(convs),
        weights=sum(p.numel() for module in convs for p in module.parameters()),
        affine=sum(p.numel() for module in norms for p in module.parameters()),
        statistics=sum(b.numel() for module in norms for b in module.buffers() if b.is_floating_point()),
        head=sum(p.numel() for p in linears[0].parameters()),
        total=sum(p.numel() for p in model.parameters()),
    )


MODEL = counted(timm.create_model("test_resnet", num_classes=3))
NORMS = MODEL.affine + MODEL.statistics
EXPECTED = {
    "all-open": Params(MODEL.weights, NORMS, MODEL.head),
    "same-again": Params(0, NORMS, MODEL.head),
    "norms": Params(0, NORMS, MODEL.head),
    "head": Params(0, 0, MODEL.head),
    "copy": Params(MODEL.weights, NORMS, MODEL.head),
    "half": Params(MODEL.weights, NORMS, MODEL.head),
    "frozen": Params(MODEL.weights, 0, MODEL.head),
}


def file_of(registry: Registry, digest: str) -> Path:
    return registry.home / "objects" / digest[:2] / f"{digest[2:]}.safetensors"


def stored(registry: Registry, task: Task) -> dict[str, torch.Tensor]:
    with open_packed(file_of(registry, task.digest)) as file:
        return {name: file.tensor(name) for name in file.names()}


def values(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())


# One task


@pytest.mark.parametrize("name", list(EXPECTED))
def test_parameters_by_part_are_those_of_timms_model(cost: BaseCost, name: str) -> None:
    (task,) = [task for task in cost.tasks if task.task == name]
    assert task.params == EXPECTED[name]


def test_running_statistics_count_as_norms(cost: BaseCost) -> None:
    (task,) = [task for task in cost.tasks if task.task == "norms"]
    assert MODEL.statistics == MODEL.affine > 0
    assert task.params.norms == 2 * MODEL.affine


@pytest.mark.parametrize("name", list(SETTINGS))
def test_parameters_and_bytes_are_those_in_the_file(registry: Registry, cost: BaseCost, name: str) -> None:
    (task,) = [task for task in cost.tasks if task.task == name]
    record = registry.task(name)
    assert task.params == record.params
    assert task.params.total == task.params.weights + task.params.norms + task.params.head
    assert task.params.total == values(stored(registry, record))
    assert task.bytes == record.bytes == file_of(registry, record.digest).stat().st_size


def test_a_task_that_closed_some_gates_stores_the_layers_of_the_others_alone(
    registry: Registry, cost: BaseCost
) -> None:
    record = registry.task("some-open")
    (task,) = [task for task in cost.tasks if task.task == "some-open"]
    model = timm.create_model("test_resnet", num_classes=3)
    gates = [layer for layer in record.layers if layer.kind == "conv"]
    opened = [layer for layer in gates if layer.open]
    assert (task.open_layers, task.layers) == (len(opened), MODEL.convs)
    assert 0 < len(opened) < len(gates)
    assert task.params.weights == sum(
        p.numel() for layer in opened for p in model.get_submodule(layer.name).parameters()
    )
    names = set(stored(registry, record))
    assert {layer.name for layer in gates if f"{layer.name}.weight" in names} == {layer.name for layer in opened}


def test_the_share_of_the_base_leaves_heads_out_on_both_sides(registry: Registry, cost: BaseCost) -> None:
    backbone = MODEL.total - MODEL.head
    assert registry.base("base").backbone_params == backbone
    for task in cost.tasks:
        assert task.share_of_base == pytest.approx((task.params.weights + task.params.norms) / backbone, rel=1e-12)
        assert task.share_of_bytes == task.bytes / cost.bytes
    shares = {task.task: task.share_of_base for task in cost.tasks}
    assert shares["head"] == 0
    assert shares["norms"] < shares["some-open"] < shares["all-open"] == shares["copy"]


def test_costs_repeat_what_the_task_was_measured_at(registry: Registry, cost: BaseCost) -> None:
    for task in cost.tasks:
        record = registry.task(task.task)
        assert (task.version, task.method, task.metrics) == (1, record.method, record.metrics)
        assert set(task.metrics) == {"val/accuracy", "val/loss", "test/accuracy", "test/loss"}


# All of them


def test_the_base_costs_what_its_file_and_its_parameters_are(registry: Registry, cost: BaseCost) -> None:
    assert cost.params == sum(p.numel() for p in timm.create_model("test_resnet").parameters())
    assert cost.bytes == file_of(registry, registry.base("base").object).stat().st_size


def test_the_total_is_the_base_and_its_tasks(cost: BaseCost) -> None:
    assert len(cost.tasks) == len(SETTINGS)
    assert cost.total.params == cost.params + sum(task.params.total for task in cost.tasks)
    assert cost.total.multiple == pytest.approx(1 + sum(task.share_of_base for task in cost.tasks), rel=1e-12)
    assert cost.total.multiple_of_bytes == cost.total.bytes / cost.bytes
    assert cost.total.multiple_if_copied == 1 + len(SETTINGS)


def test_an_object_that_two_tasks_have_in_common_counts_once(registry: Registry, cost: BaseCost) -> None:
    records = [registry.task(name) for name in SETTINGS]
    assert registry.task("norms").digest == registry.task("same-again").digest
    on_disk = {file_of(registry, record.digest) for record in records} | {
        file_of(registry, registry.base("base").object)
    }
    assert len(on_disk) < 1 + len(records)
    assert cost.total.bytes == sum(path.stat().st_size for path in on_disk)


def test_every_object_on_disk_is_in_the_total_of_some_base(registry: Registry) -> None:
    paths = [path for path in (registry.home / "objects").rglob("*") if path.is_file()]
    assert sum(cost.total.bytes for cost in registry.cost().bases) == sum(path.stat().st_size for path in paths)


def test_a_base_without_tasks_costs_itself(tmp_path: Path) -> None:
    with Registry.init(tmp_path / "home") as registry:
        assert registry.cost().bases == ()
        base = registry.add_base("base", "test_resnet", random_init=True, input_size=32)
        (cost,) = registry.cost(by="kind").bases
        assert (cost.total.multiple, cost.total.multiple_if_copied) == (1, 1)
        assert (cost.total.bytes, cost.total.params) == (base.bytes, base.params)
        assert all((row.open, row.task_params, row.task_bytes) == (0, 0, 0) for row in cost.by)


# By layer and by kind


@pytest.mark.parametrize("name", list(SETTINGS))
def test_layers_add_up_to_the_artifact(registry: Registry, name: str) -> None:
    (cost,) = registry.cost([name], by="layer").bases
    tensors = stored(registry, registry.task(name))
    body = {key: tensor for key, tensor in tensors.items() if not key.startswith("fc.")}
    assert sum(row.task_params for row in cost.by) == cost.tasks[0].params.weights + cost.tasks[0].params.norms
    assert sum(row.task_params for row in cost.by) == values(body)
    assert sum(row.task_bytes for row in cost.by) == sum(tensor.nbytes for tensor in body.values())
    for row in cost.by:
        own = {key: tensor for key, tensor in body.items() if key.rpartition(".")[0] == row.name}
        assert (row.open, row.task_params) == (int(bool(own)), values(own)), row.name
        assert row.task_bytes == sum(tensor.nbytes for tensor in own.values()), row.name


def test_layers_come_in_forward_order_with_what_the_base_has_in_them(registry: Registry) -> None:
    (cost,) = registry.cost(base="base", by="layer").bases
    model = timm.create_model("test_resnet")
    convs = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert [row.name for row in cost.by] == convs + norms
    assert sum(row.params for row in cost.by if row.kind == "conv") == MODEL.weights
    assert sum(row.params for row in cost.by if row.kind == "norm") == NORMS


def test_layers_of_all_tasks_are_the_sums_of_the_layers_of_each(registry: Registry, cost: BaseCost) -> None:
    (whole,) = registry.cost(base="base", by="layer").bases
    singles = [registry.cost([name], by="layer").bases[0].by for name in SETTINGS]
    for position, row in enumerate(whole.by):
        parts = [single[position] for single in singles]
        assert {part.name for part in parts} == {row.name}
        assert row.open == sum(part.open for part in parts)
        assert row.task_params == sum(part.task_params for part in parts)
        assert row.task_bytes == sum(part.task_bytes for part in parts)
    assert sum(row.task_params for row in whole.by) == sum(t.params.weights + t.params.norms for t in cost.tasks)


def test_kinds_are_the_sums_of_their_layers(registry: Registry) -> None:
    (layers,) = registry.cost(base="base", by="layer").bases
    (kinds,) = registry.cost(base="base", by="kind").bases
    assert [row.name for row in kinds.by] == ["conv", "norm"]
    for kind in kinds.by:
        rows = [row for row in layers.by if row.kind == kind.name]
        assert kind.layers == len(rows)
        for what in ("open", "params", "task_params", "task_bytes"):
            assert getattr(kind, what) == sum(getattr(row, what) for row in rows), what
    assert layers.tasks == kinds.tasks


# Choosing


def test_costs_of_some_tasks_leave_out_the_others_and_their_bases(registry: Registry) -> None:
    (cost,) = registry.cost(["norms", "head"]).bases
    assert [task.task for task in cost.tasks] == ["head", "norms"]
    assert cost.total.multiple_if_copied == 3
    assert [found.base for found in registry.cost(["elsewhere"]).bases] == ["other"]
    assert [found.base for found in registry.cost().bases] == ["base", "other"]


def test_a_cost_that_cannot_be_told_says_why(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match=r"no task 'hed'. Did you mean 'head'"):
        registry.cost(["head", "hed"])
    with pytest.raises(NotFoundError, match=r"no base 'nobase'. Did you mean 'base'"):
        registry.cost(base="nobase")
    with pytest.raises(SettingsError, match="The task 'elsewhere' is on the base 'other', not on 'base'"):
        registry.cost(["head", "elsewhere"], base="base")
    with pytest.raises(SettingsError, match="Costs can be broken down by task, layer, kind, not by 'colour'"):
        registry.cost(by="colour")


def test_a_task_in_training_has_no_cost_yet(registry: Registry, images: Path) -> None:
    with pytest.raises(Interrupted):
        registry.add_task("waits", "base", images, progress=Listener(stop=1), **{**QUICK, "epochs": 2})
    with pytest.raises(NotFoundError, match=r"'waits' is still in training.* add-task waits --resume"):
        registry.cost(["head", "waits"])
    registry.remove("waits")


def test_costs_come_with_their_budgets(registry: Registry, cost: BaseCost) -> None:
    assert cost.budget is None
    assert registry.cost().budget is None
    registry.set_budget(base="base", max_bytes=10**9)
    registry.set_budget(max_params=10**9)
    report = registry.cost()
    for base in ("base", None):
        registry.clear_budget(base=base)
    used = {found.base: found.budget.used_bytes for found in report.bases if found.budget}
    assert used == {"base": sum(task.bytes for task in cost.tasks)}
    assert report.budget is not None
    assert report.budget.used_params == sum(t.params.total for found in report.bases for t in found.tasks)


def test_a_task_in_training_costs_nothing_yet(tmp_path: Path, images: Path) -> None:
    with Registry.init(tmp_path / "home") as registry:
        registry.add_base("base", "test_resnet", random_init=True, input_size=32)
        registry.set_budget(max_params=NORMS + MODEL.head)
        with pytest.raises(Exception, match="exceeded by"):
            registry.add_task("late", "base", images, **QUICK)
        assert registry.task("late").state == "training"
        (cost,) = registry.cost(by="layer").bases
        assert (cost.tasks, cost.total.multiple, sum(row.task_params for row in cost.by)) == ((), 1, 0)


def test_costs_are_told_without_torch(registry: Registry) -> None:
    import subprocess

    code = (
        "import sys; from pathlib import Path; from taps_registry import Registry\n"
        "with Registry.open(sys.argv[1]) as registry: registry.cost(by='layer'), registry.tasks(), registry.budgets()\n"
        "assert not {'torch', 'timm', 'mlflow', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(registry.home)], check=True)


# Models of the paper, counted without memory for their weights


def taken_apart(name: str) -> tuple[nn.Module, Partition]:
    plugins = PluginManager()
    with torch.device("meta"):
        model = timm.create_model(name)
    architecture = plugins.architecture_for(model)
    assert architecture.name == "resnet"
    return model, plugins.partition(architecture, model)


def test_resnet50_has_the_counts_of_the_paper() -> None:
    model, partition = taken_apart("resnet50")
    stored = Stored(frozenset(partition.tensors()))
    parts = Prices(model.state_dict(), roles(partition), Float32()).footprint(stored).params
    assert len(partition.layers) == 53
    assert {layer.kind for layer in partition.layers} == {"conv"}
    assert parts.weights == 23_454_912
    assert parts.norms == 53_120 + 53_120
    assert parameters(model, without=partition.head) == 23_508_032 == 23_454_912 + 53_120
    assert parts.head == 2048 * 1000 + 1000
    assert counted(model) == Counted(53, 23_454_912, 53_120, 53_120, parts.head, 23_508_032 + parts.head)


@pytest.mark.parametrize(("name", "gates"), [("resnet34", 36), ("resnet50", 53), ("resnet101", 104)])
def test_a_resnet_has_a_gate_for_each_convolution(name: str, gates: int) -> None:
    model, partition = taken_apart(name)
    assert len(partition.layers) == gates == counted(model).convs
    assert partition.head == ("fc.weight", "fc.bias")
    assert partition.shared == ()
    assert len(partition.norms) == gates
