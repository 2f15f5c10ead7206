"""Adding, removing, exporting, collecting or failing to add a task changes no bit of any other task or of the base."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from taps_registry import Registry
from taps_registry.registry.errors import BudgetError, DataError, Interrupted, TapsError, TrainingError
from taps_registry.registry.training.progress import EpochResult, Progress

QUICK: dict[str, Any] = {"epochs": 1, "augment": "none", "tracker": "none", "workers": 0, "batch_size": 8}
DENSENET = {"growth_rate": 8, "block_config": (2, 2)}
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("test_resnet", {}),
    "densenet": ("densenet121", DENSENET),
    "vit": ("test_vit", {}),
}


@dataclass(frozen=True)
class State:
    """All that must not change of a task: its file, every tensor and buffer of its model, its logits."""

    file: str
    tensors: str
    logits: bytes


def state(registry: Registry, task: str) -> State:
    record = registry.task(task)
    path = registry.home / "objects" / record.digest[:2] / f"{record.digest[2:]}.safetensors"
    model = registry.load(task, device="cpu").model
    whole = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        whole.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    noise = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = model(noise).numpy().tobytes()
    return State(hashlib.sha256(path.read_bytes()).hexdigest(), whole.hexdigest(), logits)


def base_files(registry: Registry) -> dict[str, str]:
    found = {}
    for base in registry.bases():
        path = registry.home / "objects" / base.object[:2] / f"{base.object[2:]}.safetensors"
        found[base.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture(scope="module", params=BACKBONES)
def peopled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, images: Path
) -> Iterator[Registry]:
    """A base of each kind with a task of every method."""
    model, arguments = BACKBONES[request.param]
    with Registry.init(tmp_path_factory.mktemp("isolation") / "home") as registry:
        registry.add_base("base", model, random_init=True, input_size=32, arguments=arguments)
        for method in ("taps", "head-only", "norm-only", "full"):
            registry.add_task(method, "base", images, method=method, **QUICK)
        registry.add_task("gated-norms", "base", images, norms="gated", sparsity=20.0, score_lr=0.05, **QUICK)
        yield registry


class FailsLate(Progress):
    def epoch(self, result: EpochResult) -> None:
        raise KeyboardInterrupt


def fail(registry: Registry, images: Path, error: type[TapsError], **settings: Any) -> None:
    with pytest.raises(error):
        registry.add_task("failing", "base", settings.pop("data", images), **{**QUICK, **settings})


def every_verb(registry: Registry, images: Path, folder: Path) -> Iterator[str]:
    """Does everything that could disturb a task, one thing at a time."""
    for method in ("taps", "head-only", "norm-only", "full"):
        registry.add_task(f"new-{method}", "base", images, method=method, seed=3, **QUICK)
        yield f"adding a task with {method}"
    registry.export("new-taps", folder / "out.safetensors")
    yield "exporting"
    registry.predict("new-taps", [images / "dark" / "0.png"])
    registry.evaluate("new-full", images)
    yield "predicting and evaluating"
    fail(registry, images, DataError, data=images / "dark")
    fail(registry, images, TrainingError, lr=1e30)
    yield "failing to add"
    fail(registry, images, Interrupted, progress=FailsLate())
    yield "interrupting"
    registry.set_budget(max_bytes=1)
    registry.remove("failing")
    fail(registry, images, BudgetError)
    registry.clear_budget()
    yield "running out of budget"
    for method in ("taps", "head-only", "norm-only", "full"):
        registry.remove(f"new-{method}")
    yield "removing"
    registry.gc()
    yield "collecting"
    registry.add_base("second", "test_resnet", random_init=True, input_size=32, seed=5)
    yield "adding a base"


def test_no_verb_changes_a_bit_of_another_task_or_of_the_base(peopled: Registry, images: Path, tmp_path: Path) -> None:
    names = [task.name for task in peopled.tasks()]
    before, files = {name: state(peopled, name) for name in names}, base_files(peopled)
    assert len({found.logits for found in before.values()}) == len(names), "tasks that answer alike show nothing"
    done = 0
    for what in every_verb(peopled, images, tmp_path):
        for name in names:
            assert state(peopled, name) == before[name], f"{what} changed {name}"
        assert base_files(peopled).items() >= files.items(), f"{what} changed the base"
        done += 1
    assert done == 12
    assert peopled.verify(deep=True) == ()


def test_switching_between_tasks_restores_each_exactly(peopled: Registry) -> None:
    first = {name: state(peopled, name) for name in ("taps", "full", "norm-only")}
    for _ in range(2):
        for name, expected in first.items():
            assert state(peopled, name) == expected


def test_a_closed_layer_is_the_bases_own_tensor(registry: Registry, add: Callable[..., Any]) -> None:
    from safetensors.torch import load_file

    task = registry.task(add("task", epochs=4, sparsity=5.0, score_lr=0.02).name)
    base = registry.base("base")
    tensors = load_file(registry.home / "objects" / base.object[:2] / f"{base.object[2:]}.safetensors")
    model = registry.load("task").model.state_dict()
    closed = [layer.name for layer in task.layers if not layer.open]
    opened = [layer.name for layer in task.layers if layer.open and layer.kind != "norm"]
    assert closed
    assert opened
    assert all(torch.equal(model[f"{name}.weight"], tensors[f"{name}.weight"]) for name in closed)
    assert not any(torch.equal(model[f"{name}.weight"], tensors[f"{name}.weight"]) for name in opened)
