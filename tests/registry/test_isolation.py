"""Adding, removing, exporting, collecting or failing to add a task changes no bit of any other task or of the base."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from taps_registry import Registry
from taps_registry.plugins.encodings.low_rank import PlainLowRank
from taps_registry.registry.errors import BudgetError, DataError, Interrupted, TapsError, TrainingError
from taps_registry.registry.inference.compose import compose
from taps_registry.registry.models import bases
from taps_registry.registry.training.progress import EpochResult, Progress

QUICK: dict[str, Any] = {"epochs": 1, "augment": "none", "tracker": "none", "workers": 0, "batch_size": 8}
DENSENET = {"growth_rate": 8, "block_config": (2, 2)}
METHODS: dict[str, dict[str, Any]] = {
    "taps": {},
    "head-only": {},
    "norm-only": {},
    "bitfit": {},
    "full": {},
    "hard-sharing": {},
    "lora": {},
    "rcm": {},
    "parallel-adapter": {"norms": "frozen"},
    "diff-pruning": {"keep": 0.02},
    "piggyback": {"lr": 5e-2},  # at the usual rate a few steps flip no bit
    "vmt-adapter": {},
    "vmt-adapter-lite": {},
}
FOLDING = tuple(method for method in METHODS if not method.startswith("vmt"))
BACKBONES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "resnet": ("test_resnet", {}, FOLDING),
    "densenet": (
        "densenet121",
        DENSENET,
        ("taps", "full", "piggyback"),
    ),  # its layers are of the same kinds as a ResNet's
    "vit": ("test_vit", {}, tuple(METHODS)),
}
GATED = {"norms": "gated", "sparsity": 20.0, "score_lr": 0.05}


@dataclass(frozen=True)
class State:
    """All that must not change of a task: its file, every tensor and buffer of its model, its logits."""

    file: str
    tensors: str
    logits: bytes


NOISE = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def states(registry: Registry, models: Mapping[str, nn.Module]) -> dict[str, State]:
    """Of tasks, with their models as they were loaded now or before."""
    digests = {task.name: task.digest for task in registry.tasks()}
    found = {}
    for name, model in models.items():
        whole = hashlib.sha256()
        for part, tensor in (*model.named_parameters(), *model.named_buffers()):
            whole.update(part.encode() + tensor.contiguous().numpy().tobytes())
        file = hashlib.sha256(object_of(registry, digests[name]).read_bytes()).hexdigest()
        found[name] = State(file, whole.hexdigest(), model(NOISE).numpy().tobytes())
    return found


def load(registry: Registry, names: Iterable[str]) -> dict[str, nn.Module]:
    return {name: registry.load(name, device="cpu").model for name in names}


def object_of(registry: Registry, digest: str) -> Path:
    return registry.home / "objects" / digest[:2] / f"{digest[2:]}.safetensors"


def base_files(registry: Registry) -> dict[str, str]:
    paths = {base.name: object_of(registry, base.object) for base in registry.bases()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}


@dataclass(frozen=True)
class Peopled:
    """A registry with a base and a task of every method that suits it, and one with gated norms."""

    registry: Registry
    methods: tuple[str, ...]


@pytest.fixture(scope="module", params=BACKBONES)
def peopled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, images: Path
) -> Iterator[Peopled]:
    model, arguments, methods = BACKBONES[request.param]
    with Registry.init(tmp_path_factory.mktemp("isolation") / "home") as registry:
        registry.add_base("base", model, random_init=True, input_size=32, arguments=arguments)
        for method in methods:
            registry.add_task(method, "base", images, method=method, **{**QUICK, **METHODS[method]})
        registry.add_task("gated-norms", "base", images, **QUICK, **GATED)
        yield Peopled(registry, methods)


class FailsLate(Progress):
    def epoch(self, result: EpochResult) -> None:
        raise KeyboardInterrupt


def fail(registry: Registry, images: Path, error: type[TapsError], name: str = "failing", **settings: Any) -> None:
    with pytest.raises(error):
        registry.add_task(name, "base", settings.pop("data", images), **{**QUICK, **settings})


def add_at_last(registry: Registry, images: Path, method: str) -> None:
    """A task of the method fails, is interrupted, and is added after all."""
    settings = {**METHODS[method], "method": method, "seed": 3}
    if method == "vmt-adapter":
        settings["set"] = "others"  # one begins a set, the other joins one
    fail(registry, images, TrainingError, **{**settings, "lr": 1e38})
    fail(registry, images, Interrupted, f"new-{method}", progress=FailsLate(), **settings)
    registry.resume_task(f"new-{method}")


def every_verb(registry: Registry, methods: tuple[str, ...], images: Path, folder: Path) -> Iterator[str]:
    """Does everything that could disturb a task, one thing at a time."""
    for method in methods:
        add_at_last(registry, images, method)
        yield f"failing, interrupting or adding with {method}"
    for method in methods:
        if method in FOLDING:
            registry.export(f"new-{method}", folder / f"{method}.safetensors")
        registry.predict(f"new-{method}", [images / "dark" / "0.png"])
    registry.evaluate("new-full", images)
    yield "exporting, predicting or evaluating"
    fail(registry, images, DataError, data=images / "dark")
    yield "failing to add"
    registry.set_budget(max_bytes=1)
    fail(registry, images, BudgetError)
    registry.clear_budget()
    yield "running out of budget"
    for method in methods:
        registry.remove(f"new-{method}")
    yield "removing"
    registry.gc()
    yield "collecting"
    registry.add_base("second", "test_resnet", random_init=True, input_size=32, seed=5)
    yield "adding a base"


def test_no_verb_changes_a_bit_of_another_task_or_of_the_base(peopled: Peopled, images: Path, tmp_path: Path) -> None:
    """After each verb the files, and the models that were loaded before it; at the end, all loaded anew."""
    registry, names = peopled.registry, [task.name for task in peopled.registry.tasks()]
    loaded = load(registry, names)
    before, files = states(registry, loaded), base_files(registry)
    assert len({found.logits for found in before.values()}) == len(names), "tasks that answer alike show nothing"
    done = 0
    for what in every_verb(registry, peopled.methods, images, tmp_path):
        changed = [name for name, now in states(registry, loaded).items() if now != before[name]]
        assert changed == [], what
        assert base_files(registry).items() >= files.items(), f"{what} changed the base"
        done += 1
    assert done == len(peopled.methods) + 6
    assert states(registry, load(registry, names)) == before
    assert registry.verify(deep=True) == ()


def test_switching_between_tasks_restores_each_exactly(peopled: Peopled) -> None:
    names = peopled.methods[::3]
    first = states(peopled.registry, load(peopled.registry, names))
    assert states(peopled.registry, load(peopled.registry, reversed(names))) == first


@pytest.mark.parametrize("decoded", ["anew", "the base", "rows of the base"])
def test_what_is_done_to_a_loaded_model_reaches_neither_the_base_nor_a_file(
    registry: Registry, add: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, decoded: str
) -> None:
    """Whatever an encoding gives back: a tensor of its own, or what it was given."""
    task = add("task", method="lora", rank=1)
    given = {"the base": lambda parts, base: base, "rows of the base": lambda parts, base: base[:]}
    if decoded in given:
        monkeypatch.setattr(PlainLowRank, "decode", lambda form, parts, base: given[decoded](parts, base))
    base = bases.load(registry._context, registry.base("base"))
    base = replace(base, tensors={name: tensor.clone() for name, tensor in base.tensors.items()})
    before = {name: tensor.clone() for name, tensor in base.tensors.items()}
    store = registry._context.store
    composed = compose(base, store.get(task.digest), store.get)
    with torch.no_grad():
        for tensor in (*composed.model.parameters(), *composed.model.buffers()):
            tensor.fill_(7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.tensors.items())
    assert registry.verify(deep=True) == ()


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
