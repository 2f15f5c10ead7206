"""Plugins: how they are found, what happens when they clash or fail, and how they take models apart."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from taps_registry import Registry, testing
from taps_registry.cli.main import _run
from taps_registry.cli.session import Session
from taps_registry.plugins import Architecture, Generic, Layer, Partition
from taps_registry.plugins.architectures.pieces import Pieces, tensor_of
from taps_registry.plugins.manager import PluginInfo, PluginManager
from taps_registry.registry.errors import IntegrityError, PartitionError, PluginError

BUILT_IN = {
    "resnet": ["architecture resnet"],
    "resnetv2": ["architecture resnetv2"],
    "densenet": ["architecture densenet"],
    "vit": ["architecture vit"],
    "beit": ["architecture beit"],
    "eva": ["architecture eva"],
    "generic": ["architecture generic"],
    "taps": ["method taps"],
    "head-only": ["method head-only"],
    "norm-only": ["method norm-only"],
    "bitfit": ["method bitfit"],
    "full": ["method full"],
    "hard-sharing": ["method hard-sharing"],
    "lora": ["method lora"],
    "taps-rank": ["method taps-rank"],
    "rcm": ["form modulated", "method rcm"],
    "parallel-adapter": ["form centre", "method parallel-adapter"],
    "diff-pruning": ["form sparse", "method diff-pruning"],
    "piggyback": ["form masked", "method piggyback"],
    "vmt-adapter": ["method vmt-adapter", "method vmt-adapter-lite"],
    "floats": ["encoding bf16", "encoding fp16", "encoding fp32", "form bf16-values"],
    "minifloat": ["form float8-changes"],
    "integers": ["encoding int3", "encoding int4", "encoding int8"],
    "svd": ["encoding svd"],
    "low-rank": ["form low-rank", "form low-rank-int3", "form low-rank-int4", "form low-rank-int8"],
    "mlflow": ["tracker mlflow"],
    "csv": ["tracker csv"],
    "none": ["tracker none"],
}

ARCHITECTURE = """
from taps_registry.plugins import Generic, hookimpl

class Strange(Generic):
    name = {name!r}
    fallback = False

    def matches(self, model):
        return type(model).__name__ == {model!r}

    def stage(self, path):
        return "somewhere"

@hookimpl
def register_architectures(registrar):
    registrar.architecture(Strange())
"""

TRACKER = """
from taps_registry.plugins import hookimpl
from taps_registry.plugins.trackers.none import NoTracker

class Strange(NoTracker):
    name = {name!r}

@hookimpl
def register_trackers(registrar):
    registrar.tracker(Strange())
"""

Install = Callable[..., Path]


def on_meta(name: str) -> nn.Module:
    """A model of the right shapes without any memory behind them."""
    with torch.device("meta"):
        return timm.create_model(name)


def by_name(manager: PluginManager) -> dict[str, PluginInfo]:
    return {info.name: info for info in manager.plugins()}


# Finding


def test_built_in_plugins_come_through_the_entry_points_like_all_others() -> None:
    infos = [info for info in PluginManager().plugins() if info.distribution == "taps-registry"]
    assert {info.name: sorted(what.partition(":")[0] for what in info.provides) for info in infos} == BUILT_IN
    assert {(info.state, info.version) for info in infos} == {("active", "0.1.0")}
    assert {info.hooks for info in infos if info.name in ("taps", "full")} == {("register_methods",)}


def test_plugins_are_listed_by_name() -> None:
    names = [info.name for info in PluginManager().plugins()]
    assert names == sorted(names)


def test_a_strangers_architecture_is_found_and_preferred_over_the_generic_one(install: Install) -> None:
    model = on_meta("test_byobnet")
    assert PluginManager().architecture_for(model).name == "generic"
    install("taps-strange", "strange", ARCHITECTURE.format(name="strange", model="ByobNet"), "1.5")
    manager = PluginManager()
    assert by_name(manager)["strange"] == PluginInfo(
        "strange", "taps-strange", "1.5", ("register_architectures",), ("architecture strange",), "active"
    )
    found = manager.architecture_for(model)
    assert found.name == "strange"
    assert {layer.stage for layer in manager.partition(found, model).layers} == {"somewhere"}
    assert manager.architecture_for(on_meta("test_convnext")).name == "generic"


def test_the_example_in_the_documentation_of_plugins_works(install: Install) -> None:
    import taps_registry.plugins as documented

    lines = str(documented.__doc__).partition("# my_backbone.py\n")[2].partition("\nand these lines")[0]
    install("my-backbone", "my-backbone", "\n".join(line[4:] for line in lines.splitlines()))
    info = by_name(PluginManager())["my-backbone"]
    assert (info.state, info.provides) == ("active", ("architecture my-backbone",))


def test_two_plugins_that_know_one_model_are_an_error_that_names_both(install: Install) -> None:
    install("taps-strange", "strange", ARCHITECTURE.format(name="strange", model="ResNet"))
    with pytest.raises(PluginError, match=r"More than one plugin knows ResNet: resnet, strange\. .*--plugin"):
        PluginManager().architecture_for(on_meta("test_resnet"))


def test_the_choice_between_two_plugins_can_be_made_by_name(install: Install, tmp_path: Path) -> None:
    install("taps-strange", "strange", ARCHITECTURE.format(name="strange", model="ResNet"))
    with Registry.init(tmp_path / "home") as registry:
        with pytest.raises(PluginError, match="More than one plugin"):
            registry.add_base("base", "test_resnet", random_init=True, input_size=32)
        chosen = registry.add_base("base", "test_resnet", random_init=True, input_size=32, plugin="strange")
        assert chosen.plugin == "strange"
        assert {layer.stage for layer in chosen.layers} == {"somewhere"}


def test_a_name_that_two_plugins_bring_is_nobodys_and_the_error_names_both(install: Install) -> None:
    install("first-dist", "first", TRACKER.format(name="same"))
    install("second-dist", "second", TRACKER.format(name="same"))
    manager = PluginManager()
    assert manager.tracker("none").name == "none"
    with pytest.raises(PluginError, match="the tracker 'same'") as caught:
        manager.tracker("same")
    assert "'first' of first-dist" in str(caught.value)
    assert "'second' of second-dist" in str(caught.value)
    assert "$TAPS_DISABLED_PLUGINS" in str(caught.value)


def test_a_clash_ends_when_one_of_the_two_is_disabled(install: Install) -> None:
    install("first-dist", "first", TRACKER.format(name="same"))
    install("second-dist", "second", TRACKER.format(name="same"))
    manager = PluginManager(["first"])
    assert manager.tracker("same").name == "same"
    assert by_name(manager)["first"].state == "disabled"
    assert by_name(manager)["second"].state == "active"


def test_a_plugin_cannot_replace_a_built_in_one(install: Install) -> None:
    install("first-dist", "first", TRACKER.format(name="mlflow"))
    manager = PluginManager()
    assert by_name(manager)["first"].state == "failed: it brings the tracker 'mlflow', which taps-registry has already"
    assert type(manager.tracker("mlflow")).__module__.startswith("taps_registry.")


def test_two_packages_with_one_entry_point_name_both_fail_and_harm_nobody(install: Install) -> None:
    install("first-dist", "same", TRACKER.format(name="one"))
    install("second-dist", "same", TRACKER.format(name="two"))
    manager = PluginManager()
    states = {info.distribution: info.state for info in manager.plugins() if info.name == "same"}
    assert states == {
        "first-dist": "failed: second-dist brings a plugin of this name too: uninstall one of them",
        "second-dist": "failed: first-dist brings a plugin of this name too: uninstall one of them",
    }
    assert manager.tracker("none").name == "none"


def test_a_package_cannot_take_the_entry_point_name_of_a_built_in_plugin(install: Install) -> None:
    install("first-dist", "mlflow", TRACKER.format(name="one"))
    states = {info.distribution: info.state for info in PluginManager().plugins() if info.name == "mlflow"}
    assert states["taps-registry"] == "active"
    assert states["first-dist"].startswith("failed: taps-registry brings a plugin of this name")


@pytest.mark.parametrize(
    ("source", "state"),
    [
        ("import no_such_module", "failed: ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise RuntimeError('not today')", "failed: RuntimeError: not today"),
        ("def nonsense", "failed: SyntaxError: "),
        (TRACKER.format(name="x").replace("Strange())", "Strange(1, 2))"), "failed: TypeError: "),
        (TRACKER.format(name="x").replace("(registrar)", "(registrar, more)"), "failed: PluginValidationError: "),
    ],
)
def test_a_plugin_that_fails_is_listed_with_the_reason_and_hurts_nobody_else(
    install: Install, source: str, state: str
) -> None:
    install("taps-broken", "broken", source)
    install("taps-strange", "strange", TRACKER.format(name="strange"))
    manager = PluginManager()
    infos = by_name(manager)
    assert infos["broken"].state.startswith(state)
    assert infos["broken"].provides == ()
    assert manager.tracker("strange").name == "strange"
    assert {infos[name].state for name in BUILT_IN} == {"active"}


def test_a_disabled_plugin_is_listed_and_not_loaded(install: Install) -> None:
    install("taps-strange", "strange", "raise RuntimeError('was imported')")
    info = by_name(PluginManager(["strange"]))["strange"]
    assert info.state == "disabled"
    assert "taps_strange_module" not in sys.modules


@pytest.mark.parametrize(
    ("kind", "there_are"),
    [
        ("architecture", "beit, densenet, eva, generic, resnet, resnetv2, vit"),
        (
            "method",
            "bitfit, diff-pruning, full, hard-sharing, head-only, lora, norm-only, parallel-adapter, piggyback, rcm, "
            "taps, taps-rank, vmt-adapter, vmt-adapter-lite",
        ),
        ("encoding", "bf16, fp16, fp32, int3, int4, int8, svd"),
        ("tracker", "csv, mlflow, none"),
    ],
)
def test_an_unknown_name_is_an_error_that_lists_what_there_is(kind: str, there_are: str) -> None:
    with pytest.raises(PluginError, match=rf"There is no {kind} 'nonsense'\. There are: {there_are}\."):
        getattr(PluginManager(), kind)("nonsense")


# The command line


def run(*arguments: str) -> int:
    return _run(list(arguments), Session())


def test_the_environment_disables_plugins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TAPS_DISABLED_PLUGINS", "csv, svd ,")
    assert run("plugins", "--format", "json") == 0
    states = {found["name"]: found["state"] for found in json.loads(capsys.readouterr().out)["plugins"]}
    assert {name for name, state in states.items() if state == "disabled"} == {"csv", "svd"}
    home = ("--home", str(tmp_path / "home"))
    assert run(*home, "init") == 0
    capsys.readouterr()
    assert run(*home, "add-task", "x", "--base", "b", "--data", ".", "--tracker", "csv") == 12
    assert capsys.readouterr().err.startswith("Error: There is no tracker 'csv'. There are: mlflow, none.")


def test_the_command_line_lists_a_stranger_and_a_failure(
    install: Install, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # there is no registry here: none is needed
    install("taps-strange", "strange", TRACKER.format(name="strange"), "7.1")
    install("taps-broken", "broken", "raise RuntimeError('not today')")
    assert run("plugins") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert all(text in lines["strange"] for text in ("tracker strange", "taps-strange", "7.1", "active"))
    assert "failed: RuntimeError: not today" in lines["broken"]


# Partitions


@pytest.fixture(scope="module")
def manager() -> PluginManager:
    return PluginManager()


class Wrong(Generic):
    """Changes what the walk found."""

    name = "wrong"

    def __init__(self, change: Callable[[Partition], Partition]) -> None:
        self.change = change

    def partition(self, model: nn.Module) -> Partition:
        return self.change(super().partition(model))


def without_first_layer(found: Partition) -> Partition:
    return Partition(found.layers[1:], found.norms, found.head, found.shared)


def with_first_layer_shared(found: Partition) -> Partition:
    return Partition(found.layers, found.norms, found.head, found.layers[0].tensors)


def with_first_layer_twice(found: Partition) -> Partition:
    return Partition((found.layers[0], *found.layers), found.norms, found.head, found.shared)


def with_a_layer_of_nothing(found: Partition) -> Partition:
    return Partition((*found.layers, Layer("ghost", "conv", ("ghost.weight",))), found.norms, found.head)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_first_layer, r"The partition of ResNet is wrong\. in no group: conv1\.0\.weight$"),
        (with_first_layer_shared, r"in more than one group: conv1\.0\.weight$"),
        (with_first_layer_twice, r"in more than one group: conv1\.0\.weight$"),
        (with_a_layer_of_nothing, r"not in the model: ghost\.weight$"),
    ],
)
def test_a_wrong_partition_is_an_error_that_names_the_tensor(
    manager: PluginManager, change: Callable[[Partition], Partition], message: str
) -> None:
    with pytest.raises(PartitionError, match=message):
        manager.partition(Wrong(change), on_meta("test_resnet"))


MODELS = {
    "resnet18": SimpleNamespace(plugin="resnet", layers=20, norms=20),
    "resnet50": SimpleNamespace(plugin="resnet", layers=53, norms=53),
    "densenet121": SimpleNamespace(plugin="densenet", layers=120, norms=121),
    "vit_tiny_patch16_224": SimpleNamespace(plugin="vit", layers=1 + 12 * 6, norms=1 + 12 * 2),
    "convnext_atto": SimpleNamespace(plugin="generic", layers=40, norms=17),
    "mobilenetv3_small_100": SimpleNamespace(plugin="generic", layers=53, norms=34),
    "efficientnet_b0": SimpleNamespace(plugin="generic", layers=81, norms=49),
    "swin_tiny_patch4_window7_224": SimpleNamespace(plugin="generic", layers=52, norms=29),
    "resnetv2_50": SimpleNamespace(plugin="resnetv2", layers=53, norms=49),
    "regnety_002": SimpleNamespace(plugin="generic", layers=70, norms=44),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_gets_the_plugin_and_the_layers_that_it_should(manager: PluginManager, name: str) -> None:
    model = on_meta(name)
    plugin = manager.architecture_for(model)
    partition = manager.partition(plugin, model)
    expected = MODELS[name]
    assert (plugin.name, len(partition.layers), len(partition.norms)) == (
        expected.plugin,
        expected.layers,
        expected.norms,
    )


def walks(manager: PluginManager, model: nn.Module) -> list[Architecture]:
    """The plugin that is chosen, and the generic one."""
    return [manager.architecture_for(model), manager.architecture("generic")]


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_is_in_exactly_one_place(manager: PluginManager, name: str) -> None:
    model = on_meta(name)
    for plugin in walks(manager, model):
        found = plugin.partition(model)
        placed = [*found.layer_tensors(), *found.norm_tensors(), *found.head, *found.shared]
        assert len(placed) == len(set(placed))
        assert {tensor_of(piece) for piece in placed} == set(model.state_dict())


@pytest.mark.parametrize("name", MODELS)
def test_the_head_is_the_classifier_and_nothing_else(manager: PluginManager, name: str) -> None:
    """It is what another number of classes changes."""
    model = on_meta(name)
    with torch.device("meta"):
        other = timm.create_model(name, num_classes=7).state_dict()
    changed = {key for key, tensor in model.state_dict().items() if tensor.shape != other[key].shape}
    for plugin in walks(manager, model):
        assert set(plugin.partition(model).head) == changed
        assert len(changed) == 2


@pytest.mark.parametrize("name", MODELS)
def test_layers_own_matrices_and_norms_own_vectors(manager: PluginManager, name: str) -> None:
    model = on_meta(name)
    tensors = Pieces(model.state_dict())
    found = manager.partition(manager.architecture_for(model), model)
    assert all(tensors[layer.tensors[0]].ndim in (2, 4) for layer in found.layers)
    assert all(tensors[name].ndim < 2 for norm in found.norms for name in norm.tensors)
    assert all((tensors[layer.tensors[0]].ndim == 2) is (layer.kind == "linear") for layer in found.layers)
    running = [name for name in tensors if name.endswith("running_mean")]
    assert set(running) <= set(found.norm_tensors())


def test_layers_are_in_the_order_of_the_forward_pass(manager: PluginManager) -> None:
    model = timm.create_model("test_resnet").eval()
    called: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, given, out, name=name: called.append(name))
    model(torch.zeros(1, 3, 32, 32))
    layers = manager.partition(manager.architecture_for(model), model).layers
    blocks = [layer.name for layer in layers if "downsample" not in layer.name]
    assert blocks == [name for name in called if name in set(blocks)]


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet18", ["stem", "layer1", "layer2", "layer3", "layer4"]),
        ("densenet121", ["stem", "denseblock1", "denseblock2", "denseblock3", "denseblock4", "final"]),
        ("vit_tiny_patch16_224", ["embed", *(f"blocks.{index}" for index in range(12)), "final"]),
        ("convnext_atto", ["stem", "stages", "head"]),
        ("regnety_002", ["stem", "s1", "s2", "s3", "s4"]),
    ],
)
def test_stages_follow_one_another(manager: PluginManager, name: str, stages: list[str]) -> None:
    model = on_meta(name)
    found = manager.partition(manager.architecture_for(model), model)
    assert list(dict.fromkeys(layer.stage for layer in (*found.layers, *found.norms))) == stages


def test_a_transition_belongs_to_the_dense_block_that_it_closes(manager: PluginManager) -> None:
    model = on_meta("densenet121")
    stages = {layer.name: layer.stage for layer in manager.architecture_for(model).partition(model).layers}
    assert stages["features.transition2.conv"] == "denseblock2"


def test_what_is_neither_matrix_nor_norm_stays_that_of_the_base(manager: PluginManager) -> None:
    model = on_meta("vit_tiny_patch16_224")
    assert manager.architecture_for(model).partition(model).shared == ("cls_token", "pos_embed")


# A base's plugin

LAID_OUT_OTHERWISE = (
    r"'strange' of taps-strange 2\.0 partitions the layers of 'base' differently from taps-strange 1\.0, which was used"
    r" when the base was added\. The first that differs: stem\.conv\S* \(conv, [\d,]+ parameters\) before, stages\S* \("
)


@pytest.fixture
def strange_base(install: Install, tmp_path: Path, images: Path) -> Path:
    """A registry with a task on a base that a stranger's plugin took apart. Returns its folder."""
    install("taps-strange", "strange", ARCHITECTURE.format(name="strange", model="ByobNet"))
    with Registry.init(tmp_path / "home") as registry:
        base = registry.add_base("base", "test_byobnet", random_init=True, input_size=32)
        assert base.plugin == "strange"
        registry.add_task("task", "base", images, method="head-only", epochs=1, tracker="none", workers=0)
    return tmp_path / "home"


def test_a_base_whose_plugin_is_missing_cannot_be_used_but_can_be_listed(strange_base: Path, images: Path) -> None:
    with Registry.open(strange_base, disabled_plugins=["strange"]) as registry:
        assert [task.name for task in registry.tasks()] == ["task"]
        assert registry.cost().bases[0].tasks[0].task == "task"
        missing = r"base 'base' were partitioned by the plugin 'strange' of taps-strange 1\.0, which was not found"
        with pytest.raises(PluginError, match=missing):
            registry.load("task")
        with pytest.raises(PluginError, match=missing):
            registry.add_task("other", "base", images, epochs=1, tracker="none")
        assert [task.name for task in registry.tasks()] == ["task"]
    with Registry.open(strange_base) as registry:
        assert registry.load("task").task == "task"


def test_a_plugin_that_lays_out_a_base_otherwise_than_before_is_an_error(
    strange_base: Path, install: Install, images: Path
) -> None:
    changed = ARCHITECTURE.format(name="strange", model="ByobNet") + (
        "\nfrom dataclasses import replace"
        "\nwalk = Strange.partition"
        "\ndef partition(self, model):"
        "\n    found = walk(self, model)"
        "\n    return replace(found, layers=found.layers[1:], shared=found.shared + found.layers[0].tensors)"
        "\nStrange.partition = partition\n"
    )
    install("taps-strange", "strange", changed, "2.0")
    with Registry.open(strange_base) as registry:
        assert {info.name: info.version for info in registry.plugins()}["strange"] == "2.0"
        for use in (
            lambda: registry.load("task"),
            lambda: registry.add_task("other", "base", images, epochs=1, tracker="none"),
        ):
            with pytest.raises(PluginError, match=LAID_OUT_OTHERWISE):
                use()
        assert [task.name for task in registry.tasks()] == ["task"]


def test_a_base_is_refused_before_a_byte_of_it_is_read(strange_base: Path) -> None:
    with Registry.open(strange_base) as registry:
        stored = registry.base("base").object
    (strange_base / "objects" / stored[:2] / f"{stored[2:]}.safetensors").unlink()
    without = Registry.open(strange_base, disabled_plugins=["strange"])
    with without, pytest.raises(PluginError, match="which was not found"):
        without.load("task")
    with Registry.open(strange_base) as registry:
        assert registry.base("base").plugin_version == "taps-strange 1.0"
        with pytest.raises(IntegrityError):
            registry.load("task")


def test_verify_names_the_base_whose_plugin_is_missing(strange_base: Path) -> None:
    with Registry.open(strange_base, disabled_plugins=["strange"]) as registry:
        problems = registry.verify(deep=True)
    assert [problem.subject for problem in problems] == ["base base"]
    assert "partitioned by the plugin 'strange'" in problems[0].what


def test_a_partition_that_is_wrong_keeps_a_base_out(install: Install, tmp_path: Path) -> None:
    source = ARCHITECTURE.format(name="strange", model="ByobNet") + (
        "\nfrom dataclasses import replace"
        "\nwalk = Strange.partition"
        "\nStrange.partition = lambda self, model: replace(walk(self, model), head=())\n"
    )
    install("taps-strange", "strange", source)
    with Registry.init(tmp_path / "home") as registry:
        with pytest.raises(PartitionError, match=r"in no group: head\.fc\.bias, head\.fc\.weight"):
            registry.add_base("base", "test_byobnet", random_init=True, input_size=32)
        assert registry.bases() == ()


def test_suites_are_not_collected_where_they_are_imported() -> None:
    assert [name for name in testing.__all__ if name.startswith("Test")] == []


def test_all_that_examples_import_is_at_the_door() -> None:
    """A stranger's plugin need not know our rooms."""
    import taps_registry.plugins as door

    root = Path(__file__).resolve().parents[2]
    texts = [path.read_text() for path in (root / "examples").rglob("*.py")] + [(root / "docs/plugins.md").read_text()]
    places = {place for text in texts for place in re.findall(r"from (taps_registry[\w.]*) import", text)}
    assert places <= {"taps_registry", "taps_registry.plugins", "taps_registry.testing"}
    lines = [
        line for text in texts for line in re.findall(r"from taps_registry\.plugins import (\([^)]*\)|[^\n]*)", text)
    ]
    names = {name for line in lines for name in re.findall(r"\w+", line)}
    assert {"Encoding", "hookimpl"} <= names <= set(door.__all__)
    for name in door.__all__:
        assert getattr(door, name) is not None
