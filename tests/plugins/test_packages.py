"""The packages of a task's method and forms: recorded, shown, and named where one is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from taps_registry import Registry, __version__
from taps_registry.cli.main import main
from taps_registry.cli.session import Session
from taps_registry.registry.errors import PluginError

OURS = f"taps-registry {__version__}"
QUICK: dict[str, Any] = {"epochs": 1, "augment": "none", "tracker": "none", "workers": 0, "batch_size": 8}
Install = Callable[..., Path]

HALVES = """
import torch
from taps_registry.plugins import Encoding, hookimpl

class Halves(Encoding):
    name = "halves"
    summary = "deltas in 16 bits"

    def encode(self, value, base):
        return {"": (value - base).to(torch.float16)}

    def decode(self, parts, base):
        return base + parts[""].to(base)

    def nbytes(self, shape):
        return 2 * torch.Size(shape).numel()

@hookimpl
def register_encodings(registrar):
    registrar.encoding(Halves())
"""


@pytest.fixture
def home(registry: Registry, install: Install, images: Path) -> Path:
    """A registry with a task in a stranger's encoding."""
    install("taps-halves", "halves", HALVES, "1.5")
    with Registry.open(registry.home) as opened:
        opened.add_task("task", "base", images, method="full", encoding="halves", **QUICK)
    return Path(registry.home)


def test_the_packages_of_method_and_forms_are_recorded(home: Path) -> None:
    with Registry.open(home) as registry:
        packages = registry.task("task").packages
        assert packages["method full"] == OURS
        assert packages["form halves"] == "taps-halves 1.5"
        assert registry.verify(deep=True) == ()


def test_show_tells_them(home: Path) -> None:
    shown = CliRunner().invoke(main, ["show", "task", "--home", str(home)], obj=Session())
    assert "form halves taps-halves 1.5" in shown.output
    told = CliRunner().invoke(main, ["show", "task", "--format", "json", "--home", str(home)], obj=Session())
    assert json.loads(told.output)["task"]["packages"]["form halves"] == "taps-halves 1.5"


def test_a_form_whose_plugin_is_missing_is_named_with_its_package(home: Path) -> None:
    missing = r"holds tensors in the form 'halves' of taps-halves 1\.5, which was not found\. Install it"
    with Registry.open(home, disabled_plugins=["halves"]) as registry:
        assert [task.name for task in registry.tasks()] == ["task"]
        with pytest.raises(PluginError, match=missing):
            registry.load("task")
        with pytest.raises(PluginError, match=missing):
            registry.recode("task", "int8")


@pytest.mark.parametrize("compressed", ["", "+zstd"])
def test_another_encoding_has_other_packages_and_the_same_method(home: Path, compressed: str) -> None:
    with Registry.open(home) as registry:
        packages = registry.recode("task", f"int8{compressed}").packages
        assert packages["method full"] == OURS
        assert packages["form int8"] == OURS
        assert "form halves" not in packages
        assert registry.verify(deep=True) == ()


def test_the_same_software_writes_the_same_artifact(home: Path, images: Path) -> None:
    with Registry.open(home) as registry:
        again = registry.add_task("again", "base", images, method="full", encoding="halves", **QUICK)
        assert again.digest == registry.task("task").digest
