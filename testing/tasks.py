"""What a registry promises of every method: bounds, isolation, resuming, export."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import nn

from ..plugins.manager import PluginManager
from ..plugins.methods import Method
from .home import QUICK, add, images_in, interrupted, registry_with_base
from .models import differing, few, logits, same_bits

if TYPE_CHECKING:
    from ..registry import Registry


@cache
def _installed(places: tuple[str, ...]) -> PluginManager:
    """The plugins found in these places, which every test of every suite asks for."""
    return PluginManager()


class WholeWay:
    """The part of ``MethodTests`` that goes from ``add_base`` to ``export``; see there for the attributes."""

    method: ClassVar[Method]
    settings: ClassVar[Mapping[str, Any]]
    budget: ClassVar[str]
    model: ClassVar[str]
    arguments: ClassVar[Mapping[str, Any]]
    pixels: ClassVar[int]

    @cached_property
    def manager(self) -> PluginManager:
        """The plugins of this environment."""
        return _installed(tuple(sys.path))

    @contextmanager
    def registry(self, folder: Path) -> Iterator[Registry]:
        """A registry with a base that the method can adapt, which it finds by its name."""
        installed = self.manager.method(self.method.name)  # raises an error that lists what there is
        assert type(installed) is type(self.method), (
            f"--method {self.method.name} is {type(installed)}: which one is under test?"
        )
        with registry_with_base(folder, self.model, self.pixels, dict(self.arguments)) as registry:
            yield registry

    def options(self, name: str) -> dict[str, Any]:
        """Settings of a task; one with common tensors is in a set of its own, so that it trains them."""
        alone = {"set": name} if self.method.extension(self.method.settings(**self.settings)) else {}
        budget = {"budget": self.budget} if self.budget else {}
        return {"method": self.method.name, **self.settings, **alone, **budget}

    def test_a_task_keeps_to_its_estimate_and_a_second_one_leaves_it_alone(self, tmp_path: Path) -> None:
        options = self.options("first")
        with self.registry(tmp_path) as registry:
            estimate = registry.estimate("first", "base", images_in(tmp_path), **{**QUICK, **options})
            task = add(registry, tmp_path, "first", **options)
            stored = task.params.total + sum(set_.params for base in registry.cost().bases for set_ in base.sets)
            least, most = estimate.least.params.total, estimate.most.params.total
            assert least <= stored <= most, f"the task stores {stored:,} values; estimate said {least:,} to {most:,}"
            before = registry.load("first", device="cpu").model
            add(registry, tmp_path, "second", **{**options, "seed": 5, "epochs": 1})
            after, other = (registry.load(name, device="cpu").model for name in ("first", "second"))
            different = differing(before.state_dict(), after.state_dict())
            assert not different, f"a second task changes {few(different)} of the first"
            answers = [logits(model, self.pixels) for model in (before, after, other)]
            assert same_bits(*answers[:2]), "a second task changes the logits of the first"
            assert not same_bits(*answers[1:]), "two tasks with different heads give the same logits"
            assert registry.verify(deep=True) == (), "verify finds problems"
            self._export(registry, after, tmp_path)

    def _export(self, registry: Registry, model: nn.Module, folder: Path) -> None:
        """A checkpoint for timm if the method folds into its model, else a program."""
        if not self.method.extension(self.method.settings(**self.settings)):
            registry.export("first", folder / "first.safetensors")
            different = differing(load_file(folder / "first.safetensors"), model.state_dict())
            assert not different, f"the exported checkpoint differs in {few(different)}"
            return
        registry.export("first", folder / "first.pt2")
        program = torch.export.load(folder / "first.pt2").module()
        answers = [logits(found, self.pixels) for found in (model, program)]
        assert same_bits(*answers), "the exported program gives other logits"

    def test_an_interrupted_task_resumes_to_the_same_artifact(self, tmp_path: Path) -> None:
        with self.registry(tmp_path) as registry:
            undisturbed = add(registry, tmp_path, "undisturbed", **self.options("undisturbed"))
            assert interrupted(registry, tmp_path, "stopped", **self.options("stopped")), "the task was not stopped"
            resumed = registry.resume_task("stopped")
            assert resumed.digest == undisturbed.digest, (
                "a resumed run ends with another artifact than an undisturbed one"
            )
