"""Each method stores what its formula says, no more and no less."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import pytest
import timm
import torch
from safetensors import safe_open
from torch.nn import BatchNorm2d

from taps_registry import Registry
from taps_registry.plugins.methods import MethodSettings
from taps_registry.plugins.methods.head_only import HeadOnly
from taps_registry.registry.errors import SettingsError
from taps_registry.registry.records import Task


def shapes(classes: int) -> dict[str, tuple[int, ...]]:
    """Every floating-point tensor of the base's model with a head for this many classes."""
    model = timm.create_model("test_resnet", num_classes=classes)
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if t.is_floating_point()}


def stored(registry: Registry, task: Task) -> set[str]:
    path = registry.home / "objects" / task.digest[:2] / f"{task.digest[2:]}.safetensors"
    with safe_open(path, framework="pt") as file:
        return set(file.keys())


def of_norms() -> set[str]:
    """Modules of the base's model that are batch norms."""
    return {
        name for name, module in timm.create_model("test_resnet").named_modules() if isinstance(module, BatchNorm2d)
    }


EXPECTED: dict[str, Callable[[str], bool]] = {
    "head-only": lambda name: name.startswith("fc."),
    "norm-only": lambda name: name.startswith("fc.") or name.rpartition(".")[0] in of_norms(),
    "full": lambda name: True,
}


@pytest.mark.parametrize("method", EXPECTED)
def test_a_method_stores_what_its_formula_says(registry: Registry, add: Callable[..., Task], method: str) -> None:
    task = add("task", method=method)
    expected = {name for name in shapes(3) if EXPECTED[method](name)}
    found = {name for name in stored(registry, task) if not name.endswith("num_batches_tracked")}
    assert found == expected
    assert task.params.total == sum(prod(shapes(3)[name]) for name in expected)
    assert task.open_layers == (task.gated_layers if method == "full" else 0)


def test_taps_stores_open_layers_norms_and_head(registry: Registry, add: Callable[..., Task]) -> None:
    task = registry.task(add("task", epochs=4, sparsity=5.0, score_lr=0.02).name)
    opened = {layer.name for layer in task.layers if layer.open and layer.kind != "norm"}
    assert 0 < task.open_layers < task.gated_layers, "all gates open or closed: the test shows nothing"
    assert len(opened) == task.open_layers
    found = {name for name in stored(registry, task) if not name.endswith("num_batches_tracked")}
    always = {name for name in shapes(3) if EXPECTED["norm-only"](name)}
    assert found == always | {f"{name}.weight" for name in opened}
    assert task.params.weights == sum(prod(shapes(3)[f"{name}.weight"]) for name in opened)
    assert {layer.open for layer in task.layers if layer.score is not None and layer.score >= 0.1} == {True}
    assert {layer.open for layer in task.layers if layer.score is not None and layer.score < 0.09} == {False}


def test_the_penalty_closes_gates(add: Callable[..., Task]) -> None:
    without, strong = (add(f"task-{s}", epochs=4, sparsity=s, score_lr=0.05) for s in (0.0, 30.0))
    assert without.open_layers > strong.open_layers
    assert without.bytes > strong.bytes


def test_bf16_halves_the_bytes_of_layers(registry: Registry, add: Callable[..., Task]) -> None:
    exact, rounded = add("exact", method="full"), add("rounded", method="full", encoding="bf16")
    sizes = [
        sum(layer.bytes for layer in registry.task(t.name).layers if layer.kind != "norm") for t in (exact, rounded)
    ]
    assert sizes[1] * 2 == sizes[0]
    assert rounded.bytes < 0.55 * exact.bytes
    assert exact.params == rounded.params


def test_head_only_leaves_the_statistics_of_norms_alone() -> None:
    from taps_registry.plugins.architectures.generic import Generic

    model = timm.create_model("test_resnet", num_classes=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adaptation = HeadOnly().adapt(model, Generic().partition(model), MethodSettings())
    adaptation.train()
    model(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    ("method", "option"),
    [("head-only", {"sparsity": 2.0}), ("full", {"threshold": 0.2}), ("norm-only", {"norms": "frozen"})],
)
def test_an_option_that_means_nothing_to_the_method_is_refused(
    registry: Registry, add: Callable[..., Task], method: str, option: dict[str, object]
) -> None:
    with pytest.raises(SettingsError, match=f"--method {method} has no use for --{next(iter(option))}"):
        add("task", method=method, **option)
    assert registry.tasks() == ()
