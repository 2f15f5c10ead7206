"""The contract of an architecture, as tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..plugins.architectures import Architecture, Layer, Partition
from ..plugins.architectures.pieces import Pieces, tensor_of
from ..plugins.errors import PartitionError
from .home import add, registry_with_base
from .models import Factory, differing, few, logits, made, noise, same_bits, timm_factory


class ArchitectureTests:
    """Subclass this, and name the architecture and a tiny model or two that it is for.

    Attributes:
        architecture: under test.
        models: names of timm's, or of the architecture's own ``models``; or functions from a number of classes to a
            model, which no registry can be asked for.
        arguments: of every named model, as ``--model-arg`` gives them.
        pixels: height and width of images.
        foreign: timm's name of a model that the architecture is not for; a fallback may know it.
    """

    architecture: ClassVar[Architecture]
    models: ClassVar[tuple[str | Factory, ...]]
    arguments: ClassVar[Mapping[str, Any]] = {}
    pixels: ClassVar[int] = 32
    foreign: ClassVar[str] = "test_byobnet"

    def factory(self, model: str | Factory) -> Factory:
        """Makes one of ``models``."""
        if not isinstance(model, str):
            return model
        if model in self.architecture.models:
            return lambda classes: self.architecture.build(model, {**self.arguments, "num_classes": classes})
        return timm_factory(model, self.arguments)

    def cases(self) -> Iterator[tuple[str, nn.Module, Partition]]:
        """Each model, what to call it, and how it is taken apart."""
        assert self.models, "models names nothing to test with"
        for model in self.models:
            built = made(self.factory(model))
            yield str(getattr(model, "__name__", model)), built, self.architecture.partition(built)

    def test_it_has_a_name_and_a_learning_rate(self) -> None:
        assert self.architecture.name, "an architecture has a name"
        assert self.architecture.learning_rate > 0, "learning_rate is the default of --lr: above 0"

    def test_it_knows_its_models_and_no_foreign_one(self) -> None:
        for name, model, _ in self.cases():
            assert self.architecture.matches(model), f"matches() says no to {name}, which it is for"
        if not self.architecture.fallback:
            stranger = made(timm_factory(self.foreign, {}))
            assert not self.architecture.matches(stranger), f"matches() says yes to {self.foreign}, which it is not for"

    def test_every_tensor_is_in_exactly_one_place(self) -> None:
        for name, model, partition in self.cases():
            found = ""
            try:
                partition.check(model)
            except PartitionError as error:
                found = str(error)
            assert not found, f"{name}: {found}"

    def test_a_model_is_always_taken_apart_alike(self) -> None:
        for (name, model, first), (_, _, second) in zip(self.cases(), self.cases(), strict=True):
            assert first == self.architecture.partition(model), f"{name}: asked twice, partition() differs"
            assert first == second, f"{name}: for another model of the same kind, partition() differs"

    def test_the_head_is_all_that_the_number_of_classes_changes(self) -> None:
        for model in self.models:
            three, five = (made(self.factory(model), classes) for classes in (3, 5))
            one, other = self.architecture.partition(three), self.architecture.partition(five)
            for part in ("layers", "norms", "shared"):
                assert getattr(one, part) == getattr(other, part), f"{model}: {part} depend on the number of classes"
            assert one.head, f"{model}: the head is empty: a task would have no classifier of its own"
            shapes = {name: tensor.shape for name, tensor in five.state_dict().items()}
            changed = {name for name, tensor in three.state_dict().items() if tensor.shape != shapes.get(name)}
            outside = changed - set(one.head)
            assert not outside, f"{model}: {few(outside)} depend on the number of classes, but are not in the head"
            assert changed, f"{model}: nothing in the head depends on the number of classes"

    def test_a_layer_has_a_kind_a_module_and_its_weight_first(self) -> None:
        for name, model, partition in self.cases():
            assert partition.layers, f"{name}: there are no layers: no method could adapt it"
            tensors, paths = Pieces(model.state_dict()), {path for path, _ in model.named_modules()}
            for layer in partition.layers:
                where = f"{name}, {layer.name}"
                assert layer.kind, f"{where}: a layer has a kind, such as conv or linear"
                assert layer.tensors, f"{where}: a layer has tensors"
                weight = tensors[layer.tensors[0]]
                assert weight.ndim >= 2, f"{where}: the first tensor is the weight, not {layer.tensors[0]}"
                assert module_of(layer, paths), f"{where}: a layer's name begins with the path of its module"
            names = [layer.name for layer in (*partition.layers, *partition.norms)]
            assert len(names) == len(set(names)), f"{name}: two layers or norms have one name"

    def test_a_norm_is_a_module_with_its_statistics(self) -> None:
        for name, model, partition in self.cases():
            paths = {path for path, _ in model.named_modules()}
            for norm in partition.norms:
                assert norm.kind == "norm", f"{name}, {norm.name}: the kind of a norm is 'norm', not {norm.kind!r}"
                assert norm.name in paths, f"{name}, {norm.name}: the name of a norm is the path of its module"
            running = {tensor for tensor in model.state_dict() if tensor.endswith(("running_mean", "running_var"))}
            outside = running - set(partition.norm_tensors())
            assert not outside, f"{name}: running statistics that are in no norm would move unseen: {few(outside)}"

    def test_layers_are_in_forward_order(self) -> None:
        """Branches of one block may be in any order."""
        for name, model, partition in self.cases():
            paths = {path for path, _ in model.named_modules()}
            calls = first_calls(model, noise(1, self.pixels))
            begun: dict[tuple[str, str], int] = {}
            for layer in partition.layers:
                at = calls.get(module_of(layer, paths))
                if at is not None:
                    place = (layer.stage, layer.block) if layer.block else (layer.stage, layer.name)
                    begun[place] = min(at, begun.get(place, at))
            assert begun, f"{name}: the forward pass calls no layer"
            wanted = sorted(begun, key=begun.__getitem__)
            assert list(begun) == wanted, f"{name}: layers are not in forward order: {list(begun)} instead of {wanted}"

    def test_stages_are_the_forward_pass_bit_for_bit(self) -> None:
        for name, model, partition in self.cases():
            stages = self.architecture.stages(model)
            if not stages:
                continue
            value = images = noise(2, self.pixels)
            with torch.no_grad():
                for stage in stages:
                    value = stage.run(value)
                assert same_bits(value, model(images)), f"{name}: the stages one after another are not forward()"
            names = [stage.name for stage in stages]
            assert names[-1] == "head", f"{name}: the last stage is 'head', not {names[-1]!r}"
            assert len(names) == len(set(names)), f"{name}: two stages have one name: {names}"
            for what, layers in (("layers", partition.layers), ("norms", partition.norms)):
                used = list(dict.fromkeys(layer.stage for layer in layers))
                assert set(used) <= set(names), f"{name}: {what} are in stages that there are not: {used}, {names}"
                assert used == sorted(used, key=names.index), f"{name}: {what} pass through stages in another order"

    def test_stages_compute_with_the_models_own_tensors(self) -> None:
        """A stage depends on its layers and norms, so that a task's own ones make a difference."""
        for name, model, partition in self.cases():
            value = noise(1, self.pixels)
            for stage in self.architecture.stages(model):
                owned = [layer for layer in (*partition.layers, *partition.norms) if layer.stage == stage.name]
                with torch.no_grad():
                    before = stage.run(value)
                    shake(model, {tensor_of(tensor) for layer in owned for tensor in layer.tensors})
                    after = stage.run(value)
                alike = same_bits(before, after)
                assert not (owned and alike), f"{name}: stage {stage.name} does not compute with its own layers"
                value = before

    def test_a_task_comes_back_from_a_registry(self, tmp_path: Path) -> None:
        for index, model in enumerate(model for model in self.models if isinstance(model, str)):
            folder = tmp_path / str(index)
            with registry_with_base(folder, model, self.pixels, dict(self.arguments)) as registry:
                base = registry.base("base")
                assert base.plugin == self.architecture.name, (
                    f"add_base took {model} apart with {base.plugin!r}, not {self.architecture.name!r}: is the package "
                    "with its entry point installed?"
                )
                task = add(registry, folder, "task", method="full", epochs=1)
                states = [registry.load("task", device="cpu").model.state_dict() for _ in range(2)]
                assert not differing(*states), f"{model}: a task that is loaded twice differs"
                first, second = (logits(registry.load("task", device="cpu").model, self.pixels) for _ in range(2))
                assert same_bits(first, second), f"{model}: a task that is loaded twice gives other logits"
                assert task.open_layers == len([layer for layer in base.layers if layer.kind != "norm"]), (
                    f"{model}: with every layer trained, {task.open_layers} of them were stored"
                )
                assert registry.verify(deep=True) == (), f"{model}: verify finds problems"


def module_of(layer: Layer, paths: set[str]) -> str:
    """The path of the module that a layer is in, or part of; empty if there is none."""
    parent = layer.name.rpartition(".")[0]
    return layer.name if layer.name in paths else parent if parent in paths else ""


def first_calls(model: nn.Module, images: Tensor) -> dict[str, int]:
    """When each module is called first in a forward pass, by its path."""
    calls: dict[str, int] = {}

    def called(path: str, *given: object) -> None:
        calls.setdefault(path, len(calls))

    hooks = [module.register_forward_pre_hook(partial(called, path)) for path, module in model.named_modules()]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return calls


def shake(model: nn.Module, names: set[str]) -> None:
    """Move these tensors."""
    for name, tensor in model.state_dict().items():
        if name in names and tensor.is_floating_point():
            tensor.mul_(1.5).add_(0.1)
