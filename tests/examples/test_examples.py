"""The examples are what they say: found, chosen, used from the first command to the last, and as short as promised."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from taps_registry import Registry, plugins, testing
from taps_registry.cli.main import _run
from taps_registry.cli.session import Session
from taps_registry.plugins import spec
from taps_registry.plugins.manager import PluginManager
from taps_registry.registry.errors import SettingsError, WeightsError
from taps_registry.testing import ArchitectureTests, EncodingTests, MethodTests

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PACKAGES = {"taps-convnext": ("convnext", 80), "taps-ssf": ("ssf", 100)}
SINGLE = {"tiny-nets": "own_model", "last-stage": "last_stage", "int16": "int16"}
QUICK: dict[str, Any] = {"epochs": 1, "augment": "none", "tracker": "none", "workers": 0, "batch_size": 8}


def load(path: Path) -> ModuleType:
    """A module from a file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


own_model, last_stage, int16 = (load(EXAMPLES / f"{name}.py") for name in ("own_model", "last_stage", "int16"))


def project(package: str) -> dict[str, Any]:
    """What the ``pyproject.toml`` of an example says."""
    found: dict[str, Any] = tomllib.loads((EXAMPLES / package / "pyproject.toml").read_text("utf-8"))["project"]
    return found


def put_info(site: Path, name: str, version: str, points: dict[str, str]) -> None:
    """What pip would write of a package into ``site``."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = (f"{point} = {module}\n" for point, module in points.items())
    (folder / "entry_points.txt").write_text("[taps_registry]\n" + "".join(lines))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with the metadata of all examples, as if they were installed."""
    for package in PACKAGES:
        said = project(package)
        put_info(tmp_path / "site", said["name"], said["version"], said["entry-points"]["taps_registry"])
    put_info(tmp_path / "site", "tiny-plugins", "0.1", SINGLE)
    return tmp_path / "site"


@pytest.fixture
def paths(site: Path) -> list[str]:
    """What has to be on the path for all examples to be found."""
    return [str(site), str(EXAMPLES), *(str(EXAMPLES / package) for package in PACKAGES)]


@pytest.fixture
def installed(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All examples installed in this process, until the test ends."""
    for path in paths:
        monkeypatch.syspath_prepend(path)
    for module in (own_model, last_stage, int16):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    yield
    for name in ("taps_convnext", "taps_ssf"):
        sys.modules.pop(name, None)


OPTIONS = [text for name, value in QUICK.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def run(*arguments: str) -> int:
    return _run(list(arguments), Session())


@pytest.mark.usefixtures("installed")
def test_the_list_of_plugins_says_what_the_examples_bring_and_from_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plugins", "--format", "json") == 0
    found = {plugin["name"]: plugin for plugin in json.loads(capsys.readouterr().out)["plugins"]}
    assert found["convnext"] == {
        "name": "convnext",
        "distribution": "taps-convnext",
        "version": "0.1.0",
        "hooks": ["register_architectures"],
        "provides": ["architecture convnext"],
        "state": "active",
    }
    ssf = found["ssf"]
    assert (ssf["distribution"], ssf["version"], ssf["state"]) == ("taps-ssf", "0.1.0", "active")
    assert ssf["hooks"] == ["register_encodings", "register_methods"]
    assert {what.partition(":")[0] for what in ssf["provides"]} == {"method ssf", "form scaled-rows"}


@pytest.mark.usefixtures("installed")
def test_a_convnext_is_taken_apart_by_the_example_and_a_task_on_it_uses_ssf(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ("--home", str(tmp_path / "home"))
    assert run(*home, "init") == 0
    assert run(*home, "add-base", "tiny", "--model", "test_convnext", "--random-init", "--input-size", "32") == 0
    added = run(*home, "add-task", "task", "--base", "tiny", "--data", str(images), "--method", "ssf", *OPTIONS)
    assert added == 0, capsys.readouterr().err
    capsys.readouterr()
    assert run(*home, "show", "tiny", "--format", "json") == 0
    base = json.loads(capsys.readouterr().out)["base"]
    assert (base["plugin"], base["plugin_version"]) == ("convnext", "taps-convnext 0.1.0")
    assert run(*home, "show", "task", "--format", "json") == 0
    task = json.loads(capsys.readouterr().out)["task"]
    layers = {layer["name"]: layer for layer in task["layers"]}
    assert task["method"] == "ssf"
    assert layers["stages.3.blocks.0.mlp.fc1"]["params"] == 2 * 4 * 64, "a scale and a shift for each output"
    assert run(*home, "verify", "--deep") == 0


@pytest.mark.usefixtures("installed")
def test_options_of_the_examples_method_reach_it(tmp_path: Path, images: Path) -> None:
    with Registry.init(tmp_path / "home") as registry:
        registry.add_base("base", "test_convnext", random_init=True, input_size=32)
        whole, scales = (
            registry.estimate("task", "base", images, method="ssf", arguments=arguments).least.params.weights
            for arguments in ({}, {"shift": False})
        )
        assert whole == 2 * scales
        with pytest.raises(SettingsError, match="--method ssf does not accept --method-arg shft; leave it out"):
            registry.estimate("task", "base", images, method="ssf", arguments={"shft": 1})


def test_the_tests_of_the_examples_pass(paths: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", str(EXAMPLES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_an_example_is_short_and_its_package_complete(package: str) -> None:
    name, most = PACKAGES[package]
    said = project(package)
    (module,) = said["entry-points"]["taps_registry"].values()
    assert list(said["entry-points"]["taps_registry"]) == [name]
    assert len((EXAMPLES / package / f"{module}.py").read_text("utf-8").splitlines()) <= most
    whole = tomllib.loads((EXAMPLES / package / "pyproject.toml").read_text("utf-8"))
    assert whole["tool"]["setuptools"]["py-modules"] == [module]
    assert said["name"] == package
    assert "taps-registry" in said["dependencies"]
    assert (EXAMPLES / package / said["readme"]).exists()


# A model that is not timm's


@pytest.mark.usefixtures("installed")
class TestOwnModel(ArchitectureTests):
    architecture = own_model.TinyNets()
    models = ("tiny-net",)


@pytest.mark.usefixtures("installed")
def test_a_model_of_ones_own_goes_the_whole_way(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ("--home", str(tmp_path / "home"))
    assert run(*home, "init") == 0
    wider = ("--model-arg", "width=8")
    assert run(*home, "add-base", "own", "--model", "tiny-net", "--random-init", *wider) == 0
    assert run(*home, "add-base", "bad", "--model", "tiny-net", "--random-init", "--model-arg", "depth=8") != 0
    assert "The plugin 'tiny-nets' cannot build tiny-net" in capsys.readouterr().err
    with Registry.open(tmp_path / "home") as registry:
        base = registry.base("own")
        assert (base.plugin, base.plugin_version) == ("tiny-nets", "tiny-plugins 0.1")
        assert base.input.size == (3, 64, 64)
        registry.add_task("taps", "own", images, **QUICK)
        registry.add_task("ssf", "own", images, method="ssf", encoding="bf16", **{**QUICK, "epochs": 2})
        model = registry.load("ssf", device="cpu").model
        assert type(model).__name__ == "TinyNet"
        registry.export("ssf", tmp_path / "ssf.pt2")
        noise = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        program = torch.export.load(tmp_path / "ssf.pt2").module()
        with torch.inference_mode():
            assert torch.equal(program(noise), model(noise))
        assert registry.verify(deep=True) == ()


@pytest.mark.usefixtures("installed")
def test_weights_of_a_model_of_ones_own_come_from_a_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights = PluginManager().architecture("tiny-nets").build("tiny-net", {"num_classes": 5}).state_dict()
    save_file(weights, tmp_path / "own.safetensors")
    with Registry.init(tmp_path / "home") as registry:
        base = registry.add_base("own", "tiny-net", weights=tmp_path / "own.safetensors", arguments={"num_classes": 5})
        assert base.params == sum(
            t.numel() for name, t in weights.items() if "running" not in name and "num_b" not in name
        )
        with pytest.raises(WeightsError, match=r"comes from the plugin 'tiny-nets', not from timm"):
            registry.add_base("other", "tiny-net", pretrained=True)


# The short ones


@pytest.mark.usefixtures("installed")
class TestLastStage(MethodTests):
    method = last_stage.LastStage()


@pytest.mark.usefixtures("installed")
class TestInt16(EncodingTests):
    encoding = int16.Int16()

    def tolerance(self, value: Tensor, delta: Tensor) -> Tensor:
        return torch.full_like(delta, 0.51 / 32767) * delta.abs().max()  # half a step


# Without the examples, and about them


def test_a_plugin_that_fails_to_import_is_spoken_of_by_the_list_of_plugins_alone(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_info(tmp_path / "site", "taps-nowhere", "3.2", {"nowhere": "no_such_module"})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    told = {}
    for arguments in (
        ("init",),
        ("add-base", "base", "--model", "test_resnet", "--random-init", "--input-size", "32"),
        ("add-task", "task", "--base", "base", "--data", str(images), *OPTIONS),
        ("add-task", "other", "--base", "base", "--data", str(images), "--method", "nowhere"),
        ("show", "task"),
        ("predict", "task", str(images / "dark" / "0.png")),
        ("verify", "--deep"),
        ("plugins",),
    ):
        run(*arguments)
        output = capsys.readouterr()
        told[arguments[:2]] = output.out + output.err
    assert [command for command, text in told.items() if "no_such_module" in text] == [("plugins",)]
    assert "There is no method 'nowhere'" in told["add-task", "other"]
    assert "failed: ModuleNotFoundError: No module named 'no_such_module'" in told[("plugins",)]


def test_the_examples_in_the_documentation_are_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))  # as if it were run
    generate = load(ROOT / "docs" / "generate.py")
    page = (ROOT / "docs" / "plugins.md").read_text("utf-8")
    assert generate.plugins_page() == page, "out of date: make docs"
    shown = set(generate.EXAMPLE.findall(page))
    files = {str(path.relative_to(ROOT)) for path in (*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*/taps_*.py"))}
    assert files <= shown


def test_every_hook_and_every_member_of_a_contract_is_documented() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text("utf-8")
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    documented = {word for code in re.findall(r"`([^`\n]+)`", prose) for word in re.findall(r"\w+", code)}
    contracts = (plugins.Method, plugins.Adaptation, plugins.Unit, plugins.Encoding, plugins.TrackedRun)
    members = {name for contract in contracts for name in vars(contract) if not name.startswith("_")}
    members |= {"matches", "partition", "stages", "build", "models", "decode", "follow", "learning_rate", "fallback"}
    inner = {"in_factors", "write", "pull_back"}  # of a unit, which nobody overrides
    hooks = {name for name in vars(spec) if name.startswith("register_")}
    assert len(hooks) == 4
    assert (members - inner | hooks | set(testing.__all__)) - documented == set()
