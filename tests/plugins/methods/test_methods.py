"""Each method stores what its formula says, resumes exactly, and refuses options that mean nothing to it.

The formulas are worked out here from the shapes of timm's model alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from taps_registry import Registry
from taps_registry.plugins.architectures.generic import Generic
from taps_registry.plugins.architectures.resnet import ResNet
from taps_registry.plugins.architectures.vit import VisionTransformer
from taps_registry.plugins.manager import PluginManager
from taps_registry.plugins.methods.hard_sharing import HardSharing
from taps_registry.plugins.methods.head_only import HeadOnly
from taps_registry.plugins.methods.options import BUILT_IN
from taps_registry.plugins.methods.taps import Taps, TapsAdaptation
from taps_registry.plugins.options import options_of
from taps_registry.registry.errors import Interrupted, SettingsError
from taps_registry.registry.records import Task
from taps_registry.registry.store.artifact import tensor_bytes
from taps_registry.registry.store.packed import open_packed
from taps_registry.registry.training.progress import EpochResult, Progress
from taps_registry.registry.training.settings import ResumeOptions, TaskOptions, TaskSettings

Add = Callable[..., Task]
QUICK: dict[str, Any] = {"epochs": 1, "augment": "none", "tracker": "none", "workers": 0, "batch_size": 8}
GATED = {"epochs": 3, "sparsity": 1.0, "score_lr": 0.1, "lr": 5e-3}  # some gates close, on both backbones
GROUPED = {"layers": (1, 1, 1, 1), "channels": (16, 16, 24, 24), "cardinality": 2, "base_width": 32, "stem_width": 8}
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("test_resnet", {}),
    "vit": ("test_vit", {"img_size": 32}),
    "grouped": ("resnext50_32x4d", GROUPED),
    "depthwise": ("test_efficientnet", {}),
}
RUN = 65536  # positions of a pruned difference start again after so many weights
CLASSES = 3


# What timm's models are made of


@dataclass(frozen=True)
class Size:
    """Values and bytes."""

    params: int = 0
    bytes: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.params + other.params, self.bytes + other.bytes)


def floats(count: int) -> Size:
    return Size(count, 4 * count)


@dataclass(frozen=True)
class Weight:
    """A weight of a convolution or linear layer, seen as a matrix; a fused qkv is three of them."""

    layer: str
    rows: int
    inputs: int  # channels that each row sees
    taps: int
    groups: int
    bias: int

    @property
    def columns(self) -> int:
        return self.inputs * self.taps

    @property
    def values(self) -> int:
        return self.rows * self.columns

    @property
    def whole(self) -> Size:
        return floats(self.values)


def build(backbone: str) -> nn.Module:
    model, arguments = BACKBONES[backbone]
    built: nn.Module = timm.create_model(model, num_classes=CLASSES, **arguments)
    return built


def weights_of(model: Any) -> list[Weight]:
    found = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module is not model.get_classifier():
            names = [f"{path}.{part}" for part in "qkv"] if path.endswith(".qkv") else [path]
            rows, inputs, *kernel = module.weight.shape
            bias = 0 if module.bias is None else len(module.bias) // len(names)
            groups = getattr(module, "groups", 1)
            found += [Weight(name, rows // len(names), inputs, prod(kernel), groups, bias) for name in names]
    return found


def norms_of(model: nn.Module) -> dict[str, nn.Module]:
    return {path: m for path, m in model.named_modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)}


def norm_size(norm: nn.Module) -> Size:
    """Scale and shift; mean, variance and a 64-bit counter of batches."""
    tensors = norm.state_dict().values()
    return Size(sum(t.numel() for t in tensors if t.is_floating_point()), sum(t.nbytes for t in tensors))


def head_size(model: Any) -> Size:
    return floats(sum(parameter.numel() for parameter in model.get_classifier().parameters()))


def shared_size(model: nn.Module) -> Size:
    """Class token and position embedding."""
    return floats(sum(p.numel() for name, p in model.named_parameters() if name in ("cls_token", "pos_embed")))


def stage_of(path: str) -> str:
    parts = path.split(".")
    if parts[0] == "blocks":
        return ".".join(parts[:2])
    return parts[0] if parts[0].startswith("layer") else "final" if parts[0] == "norm" else "first"


# The formulas, each from a layer's shape to what is stored of it; nothing for a layer that is the base's


def whole_layer(weight: Weight) -> Size:
    return weight.whole + floats(weight.bias)


def smaller(weight: Weight, factors: int) -> Size:
    """The weight itself where that takes no more than its factors."""
    return floats(factors) if factors < weight.values else weight.whole


def lora(weight: Weight, rank: int) -> Size:
    rank = min(rank, weight.rows, weight.columns)
    return smaller(weight, rank * (weight.rows + weight.columns))


def rcm(weight: Weight) -> Size:
    return smaller(weight, weight.rows**2 // weight.groups)


def parallel_adapter(weight: Weight) -> Size:
    return floats(weight.rows * weight.inputs) if weight.taps > 1 else Size()


def piggyback(weight: Weight) -> Size:
    return Size(ceil(weight.values / 32), ceil(weight.values / 8))


def layers_by(formula: Callable[[Weight], Size], backbone: str) -> dict[str, Size]:
    made = {weight.layer: formula(weight) for weight in weights_of(build(backbone))}
    return {name: size for name, size in made.items() if size != Size()}


def norms_by(backbone: str, formula: Callable[[nn.Module], Size] = norm_size) -> dict[str, Size]:
    return {path: formula(norm) for path, norm in norms_of(build(backbone)).items()}


def of_stages(backbone: str, chosen: set[str]) -> dict[str, Size]:
    everything = layers_by(whole_layer, backbone) | norms_by(backbone)
    return {name: size for name, size in everything.items() if stage_of(name) in chosen}


Expected = Callable[[str], dict[str, Size]]
FIXED: dict[str, tuple[dict[str, Any], Expected]] = {
    "head-only": ({}, lambda backbone: {}),
    "norm-only": ({}, norms_by),
    "bitfit": (
        {},
        lambda backbone: (
            layers_by(lambda weight: floats(weight.bias), backbone)
            | norms_by(backbone, lambda norm: floats(len(norm.bias)))
        ),
    ),
    "full": ({}, lambda backbone: layers_by(whole_layer, backbone) | norms_by(backbone)),
    "lora": ({"rank": 4}, lambda backbone: layers_by(lambda w: lora(w, 4), backbone) | norms_by(backbone)),
    "lora of rank 40": (
        {"method": "lora", "rank": 40, "norms": "frozen"},
        lambda backbone: layers_by(lambda w: lora(w, 40), backbone),
    ),
    "rcm": ({}, lambda backbone: layers_by(rcm, backbone) | norms_by(backbone)),
    "parallel-adapter": ({}, lambda backbone: layers_by(parallel_adapter, backbone) | norms_by(backbone)),
    "piggyback": ({}, lambda backbone: layers_by(piggyback, backbone)),
}
SHARING: dict[str, dict[str, tuple[dict[str, Any], set[str]]]] = {
    "resnet": {
        "the last stage": ({}, {"layer4"}),
        "the first two": ({"share": "top", "own": "2"}, {"first", "layer1"}),
        "nothing": ({"own": "0"}, set()),
    },
    "vit": {
        "the last stage": ({}, {"blocks.5", "final"}),
        "the first two": ({"share": "top", "own": "2"}, {"first", "blocks.0"}),
        "nothing": ({"own": "0"}, set()),
    },
}
ON_GROUPS = ("lora", "rcm", "parallel-adapter")
MATRIX = [(backbone, case) for backbone in ("resnet", "vit") for case in FIXED]
MATRIX += [(backbone, case) for backbone in ("grouped", "depthwise") for case in ON_GROUPS]


# Tasks, and what their files hold


@pytest.fixture(scope="module")
def registry_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Registry]]:
    """A registry for each backbone, made when it is first asked for."""
    with ExitStack() as stack:
        made: dict[str, Registry] = {}

        def get(backbone: str) -> Registry:
            if backbone not in made:
                model, arguments = BACKBONES[backbone]
                registry = stack.enter_context(Registry.init(tmp_path_factory.mktemp(backbone) / "home"))
                registry.add_base("base", model, random_init=True, input_size=32, arguments=arguments)
                made[backbone] = registry
            return made[backbone]

        yield get


@pytest.fixture
def train(registry_of: Callable[[str], Registry], images: Path, request: pytest.FixtureRequest) -> Callable[..., Task]:
    """Adds a task named for the test to a backbone, and gives it with its layers."""

    def add_task(backbone: str, **settings: Any) -> Task:
        registry, name = registry_of(backbone), f"task-{len(registry_of(backbone).tasks())}"
        registry.add_task(name, "base", images, **{**QUICK, **settings})
        return registry.task(name)

    return add_task


def path_of(registry: Registry, digest: str) -> Path:
    return registry.home / "objects" / digest[:2] / f"{digest[2:]}.safetensors"


def tensors_of(registry: Registry, task: Task) -> dict[str, Tensor]:
    with open_packed(path_of(registry, task.digest)) as file:
        return {name: file.tensor(name) for name in file.names()}


def bytes_of(registry: Registry, task: Task) -> int:
    """Of the file's tensors."""
    return sum(tensor_bytes(path_of(registry, task.digest)).values())


def by_layer(task: Task) -> dict[str, Size]:
    return {layer.name: Size(layer.params, layer.bytes) for layer in task.layers if layer.open}


def summed(layers: dict[str, Size]) -> Size:
    return sum(layers.values(), Size())


def check(registry: Registry, task: Task, expected: dict[str, Size], backbone: str, beside: Size = Size()) -> None:
    """Hold what the catalog and the file say against the formula; ``beside`` is in no layer and in no norm."""
    model = build(backbone)
    norms = summed({name: size for name, size in expected.items() if name in norms_of(model)})
    total = summed(expected) + head_size(model) + beside
    assert by_layer(task) == expected
    assert bytes_of(registry, task) == total.bytes
    assert task.params.total == total.params
    assert (task.params.norms, task.params.head) == (norms.params, head_size(model).params)
    assert task.bytes == path_of(registry, task.digest).stat().st_size > total.bytes


@pytest.mark.parametrize(("backbone", "case"), MATRIX)
def test_a_method_stores_what_its_formula_says(
    registry_of: Callable[[str], Registry], train: Callable[..., Task], backbone: str, case: str
) -> None:
    settings, expected = FIXED[case]
    task = train(backbone, **{"method": case, **settings})
    beside = shared_size(build(backbone)) if case == "full" else Size()
    check(registry_of(backbone), task, expected(backbone), backbone, beside)
    assert task.open_layers == len(set(expected(backbone)) - set(norms_of(build(backbone))))
    assert task.gated_layers == len(weights_of(build(backbone)))


def test_factors_and_whole_weights_both_occur_among_the_cases() -> None:
    """Else ``stored whole where that is smaller`` would not have been shown."""
    for backbone, formula in (("resnet", rcm), ("grouped", rcm), ("vit", rcm), ("resnet", lambda w: lora(w, 40))):
        smaller_ones = {formula(weight).params < weight.values for weight in weights_of(build(backbone))}
        assert smaller_ones == {True, False}, backbone
    assert any(weight.rows == weight.groups for weight in weights_of(build("depthwise")))


@pytest.mark.parametrize(("backbone", "case"), [(b, case) for b in SHARING for case in SHARING[b]])
def test_hard_sharing_stores_the_stages_that_are_the_tasks_own(
    registry_of: Callable[[str], Registry], train: Callable[..., Task], backbone: str, case: str
) -> None:
    settings, stages = SHARING[backbone][case]
    task = train(backbone, method="hard-sharing", **settings)
    check(registry_of(backbone), task, of_stages(backbone, stages), backbone)


def test_hard_sharing_by_share_stores_layers_and_the_norms_of_their_blocks(
    registry_of: Callable[[str], Registry], train: Callable[..., Task]
) -> None:
    """Of the 370,608 weights, the 18,432 of the last shortcut are 5 %; with the convolution before it they are 27 %."""
    task = train("resnet", method="hard-sharing", own="10%")
    own = {"layer4.0.downsample.1", "layer4.0.bn1", "layer4.0.bn2", "layer4.0.downsample.2"}
    expected = {name: size for name, size in of_stages("resnet", {"layer4"}).items() if name in own}
    check(registry_of("resnet"), task, expected, "resnet")


SHARED = {"resnet": ResNet(), "vit": VisionTransformer(), "depthwise": Generic()}


@pytest.mark.parametrize("backbone", SHARED)
@pytest.mark.parametrize("share", ["top", "bottom"])
@fast(max_examples=25, deadline=None)
@given(percent=st.floats(0, 100, allow_nan=False).map(lambda value: round(value, 3)))
def test_a_share_is_never_exceeded_and_never_leaves_room_for_the_next_layer(
    backbone: str, share: str, percent: float
) -> None:
    model = build(backbone)
    weights = weights_of(model) if share == "top" else weights_of(model)[::-1]
    sizes = {weight.layer: weight.values + weight.bias for weight in weights}
    settings = HardSharing.settings(share=share, own=f"{percent}%")
    chosen = set(HardSharing().tensors(model, SHARED[backbone].partition(model), settings))
    own = [name for name in sizes if any(tensor in chosen for tensor in first_tensors(name))]
    assert own == list(sizes)[: len(own)], "the task's own layers are not at one end"
    taken = sum(sizes[name] for name in own)
    after = [sizes[name] for name in list(sizes)[len(own) : len(own) + 1]]
    assert taken <= percent / 100 * sum(sizes.values()) < taken + sum(after, 0 if after else 1)


def first_tensors(layer: str) -> tuple[str, ...]:
    """What the weight of a layer of these models may be called; a third of qkv is 64 rows."""
    path, _, part = layer.rpartition(".")
    start = {"q": 0, "k": 64, "v": 128}.get(part)
    return (f"{layer}.weight",) if start is None else (f"{path}.weight[{start}:{start + 64}]",)


@pytest.mark.parametrize("granularity", ["layer", "block"])
@pytest.mark.parametrize("backbone", ["resnet", "vit"])
def test_a_method_with_gates_stores_open_layers_norms_and_head(
    registry_of: Callable[[str], Registry], train: Callable[..., Task], backbone: str, granularity: str
) -> None:
    task = train(backbone, method="taps", granularity=granularity, **GATED)
    scores = {layer.name: layer.score for layer in task.layers if layer.score is not None}
    opened = {name for name, score in scores.items() if score >= 0.1}
    layers = layers_by(whole_layer, backbone)
    assert scores.keys() == layers.keys()
    assert 0 < len(opened) == task.open_layers < task.gated_layers, "all gates alike: the test shows nothing"
    expected = {name: size for name, size in layers.items() if name in opened} | norms_by(backbone)
    check(registry_of(backbone), task, expected, backbone)
    places = {}
    for name, score in scores.items():
        block = stage_of(name) if granularity == "block" else name
        places.setdefault(block, set()).add(score)
    assert all(len(found) == 1 for found in places.values()), "layers of one gate have one score"
    assert len({next(iter(found)) for found in places.values()}) == len(places), "gates have scores of their own"


def test_a_gate_decides_on_a_layer_or_on_the_layers_of_a_block() -> None:
    """A stage of this network has several blocks."""
    arguments = {"layers": (2, 1, 1, 1), "channels": (8, 8, 8, 8), "stem_type": "deep", "stem_width": 8}
    model = timm.create_model("resnet18", num_classes=3, **arguments)
    layers = [weight.layer for weight in weights_of(model)]
    blocks = [name[: len("layer1.0")] if name.startswith("layer") else "stem" for name in layers]
    assert len(set(blocks)) == 6
    for granularity, expected in (("layer", layers), ("block", blocks)):
        adaptation = Taps().adapt(model, ResNet().partition(model), Taps.settings(granularity=granularity))
        assert isinstance(adaptation, TapsAdaptation)
        gates = {layer.name: number for number, gate in enumerate(adaptation.gates) for layer in gate.layers}
        assert [gates[name] for name in layers] == [list(dict.fromkeys(expected)).index(one) for one in expected]


@pytest.mark.parametrize(("backbone", "keep"), [("resnet", 0.005), ("vit", 0.005), ("resnet", 0.5), ("vit", 0.7)])
def test_diff_pruning_stores_the_share_of_weights_that_it_keeps(
    registry_of: Callable[[str], Registry], train: Callable[..., Task], backbone: str, keep: float
) -> None:
    """6 bytes for each of ``k`` weights and 4 for each run of 65,536, or all of a weight where that is less."""
    registry = registry_of(backbone)
    task = train(backbone, method="diff-pruning", keep=keep, lr=1e-2, epochs=2)
    base = load_file(path_of(registry, registry.base("base").object))
    model = registry.load(task.name, device="cpu").model.state_dict()
    weights = weights_of(build(backbone))
    changed = {w.layer: int((rows_of(model, w) != rows_of(base, w)).sum()) for w in weights}
    assert sum(changed.values()) == round(keep * sum(weight.values for weight in weights))
    factors = {w.layer: Size(changed[w.layer], 6 * changed[w.layer] + 4 * ceil(w.values / RUN)) for w in weights}
    expected = {
        w.layer: factors[w.layer] if factors[w.layer].bytes < w.whole.bytes else w.whole
        for w in weights
        if changed[w.layer]
    }
    check(registry, task, expected | norms_by(backbone), backbone)
    assert (keep > 0.4) == any(expected[w.layer] == w.whole for w in weights if w.layer in expected)
    assert backbone == "vit" or any(weight.values > RUN for weight in weights)


def test_a_layer_of_which_nothing_is_kept_is_not_counted_as_open(train: Callable[..., Task]) -> None:
    task = train("vit", method="diff-pruning", keep=0.0001)
    opened = [layer.name for layer in task.layers if layer.open and layer.kind != "norm"]
    assert 0 < len(opened) < 30
    assert task.open_layers == len(opened)


def rows_of(tensors: dict[str, Tensor], weight: Weight) -> Tensor:
    """The weight itself; a third of qkv is its 64 rows."""
    (name,) = first_tensors(weight.layer)
    whole, _, rows = name.partition("[")
    return tensors[whole] if not rows else tensors[whole][slice(*map(int, rows.strip("]").split(":")))]


@pytest.mark.parametrize("method", ["vmt-adapter", "vmt-adapter-lite"])
def test_vmt_stores_scale_and_shift_of_each_block_and_its_projections_once(
    registry_of: Callable[[str], Registry], train: Callable[..., Task], method: str
) -> None:
    rank, width, blocks = 5, 64, 6
    registry = registry_of("vit")
    for _ in range(2):
        task = train("vit", method=method, rank=rank)
        check(registry, task, norms_by("vit"), "vit", beside=floats(2 * rank * blocks))
        assert task.params.weights == 2 * rank * blocks
    (common,) = [found for found in registry.cost([task.name]).bases[0].sets if task.name in found.tasks]
    matrices = 1 if method.endswith("lite") else 2
    assert common.params == matrices * width * rank * blocks
    assert len(common.tasks) == 2


def test_the_penalty_closes_gates(add: Add) -> None:
    without, strong = (add(f"task-{s}", epochs=4, sparsity=s, score_lr=0.05) for s in (0.0, 30.0))
    assert without.open_layers > strong.open_layers
    assert without.bytes > strong.bytes


def test_bf16_halves_the_bytes_of_layers(registry: Registry, add: Add) -> None:
    exact, rounded = add("exact", method="full"), add("rounded", method="full", encoding="bf16")
    sizes = [
        sum(layer.bytes for layer in registry.task(t.name).layers if layer.kind != "norm") for t in (exact, rounded)
    ]
    assert sizes[1] * 2 == sizes[0]
    assert rounded.bytes < 0.55 * exact.bytes
    assert exact.params == rounded.params


def test_head_only_leaves_the_statistics_of_norms_alone() -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adaptation = HeadOnly().adapt(model, Generic().partition(model), HeadOnly.settings())
    adaptation.train()
    model(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"fc.weight", "fc.bias"}


# Resuming


class StopsAfter(Progress):
    """Presses Ctrl-C when an epoch has ended."""

    def __init__(self, epoch: int) -> None:
        self.stop = epoch

    def epoch(self, result: EpochResult) -> None:
        if result.epoch == self.stop:
            raise KeyboardInterrupt


RESUMED: dict[str, tuple[str, dict[str, Any]]] = {  # with what their suites leave out; those resume every method
    "full": ("resnet", {}),
    "hard-sharing": ("resnet", {"own": "2"}),
    "lora": ("vit", {"rank": 2}),
    "diff-pruning": ("vit", {"keep": 0.01, "lr": 5e-3, "epochs": 4, "score_lr": 1.0, "sparsity": 50.0}),
    "taps-rank": ("vit", {"budget": "10%", "epochs": 10}),
    "taps": ("vit", {**GATED, "granularity": "block"}),
    "vmt-adapter": ("vit", {}),
}


STOPS = {
    "diff-pruning": (1, 2, 3),  # searching, between, refitting
    "taps": (2,),  # gates closed
    "taps-rank": (1, 8, 9),  # all trains, the first half is to rest, it rests
}


@pytest.mark.parametrize("method", RESUMED)
def test_an_interrupted_run_resumes_to_the_artifact_of_an_undisturbed_one(
    registry_of: Callable[[str], Registry], train: Callable[..., Task], images: Path, method: str
) -> None:
    backbone, changes = RESUMED[method]
    registry, beside = registry_of(backbone), method.startswith("vmt")
    settings = {**QUICK, "epochs": 2, "augment": "light", "seed": 4, "method": method, **changes}
    undisturbed = train(backbone, **settings, **({"set": f"undisturbed-{method}"} if beside else {}))
    for stop in STOPS.get(method, (1,)):
        name = f"stopped-{method}-{stop}"
        options = {**settings, "set": name} if beside else settings
        with pytest.raises(Interrupted):
            registry.add_task(name, "base", images, progress=StopsAfter(stop), **options)
        assert registry.resume_task(name).digest == undisturbed.digest
        assert registry.runs(name)[0].epoch == settings["epochs"] > stop


# Options

LISTENS = {
    "taps": {"sparsity", "penalty", "threshold", "score_lr", "norms", "granularity"},
    "taps-rank": {"norms"},
    "head-only": set(),
    "norm-only": set(),
    "bitfit": set(),
    "full": set(),
    "hard-sharing": {"share", "own"},
    "lora": {"rank", "alpha", "norms"},
    "rcm": {"norms"},
    "parallel-adapter": {"norms"},
    "diff-pruning": {"keep", "sparsity", "score_lr", "norms"},
    "piggyback": set(),
    "vmt-adapter": {"rank", "norms", "set"},
    "vmt-adapter-lite": {"rank", "norms", "set"},
}
OTHER: dict[str, Any] = {
    "sparsity": 2.0,
    "penalty": "uniform",
    "threshold": 0.2,
    "score_lr": 0.5,
    "norms": "frozen",
    "granularity": "block",
    "rank": 4,
    "alpha": 1.0,
    "keep": 0.5,
    "share": "top",
    "own": "2",
    "set": "others",
    "arguments": {"colour": "red"},
}


def named(option: str) -> str:
    return "--method-arg colour" if option == "arguments" else f"--{option.replace('_', '-')}"


def test_every_built_in_method_is_in_the_table_of_options() -> None:
    lines = [line for info in PluginManager().plugins() for line in info.provides if line.startswith("method ")]
    assert {line.removeprefix("method ").partition(":")[0] for line in lines} == set(LISTENS)


@pytest.mark.parametrize("option", OTHER)
@pytest.mark.parametrize("method", LISTENS)
def test_an_option_is_heeded_or_refused_by_its_name(method: str, option: str) -> None:
    budget = "5%" if PluginManager().method(method).needs_limits else ""
    settings = TaskSettings.of({"method": method, "budget": budget, option: OTHER[option]})
    settings.check()
    if option in LISTENS[method]:
        settings.check_method(PluginManager().method(method))
        return
    refusal = f"^--method {method} does not accept {named(option)}; leave it out\\."
    with pytest.raises(SettingsError, match=refusal) as caught:
        settings.check_method(PluginManager().method(method))
    assert caught.value.exit_code == 2


def test_all_options_that_mean_nothing_are_named_and_nothing_is_written(registry: Registry, add: Add) -> None:
    with pytest.raises(SettingsError, match="--method lora does not accept --keep, --own, --sparsity; leave it out"):
        add("task", method="lora", sparsity=2.0, keep=0.1, own="3", rank=2)
    assert registry.tasks() == ()
    assert registry.runs() == ()


@pytest.mark.parametrize("method", sorted(method for method in LISTENS if "norms" in LISTENS[method]))
def test_norms_are_gated_only_by_taps(method: str) -> None:
    found = PluginManager().method(method)
    settings = TaskSettings.of({"method": method, "norms": "gated", "budget": "5%" if found.needs_limits else ""})
    if method == "taps":
        settings.check_method(found)
        return
    with pytest.raises(SettingsError, match=f"--method {method}: --norms must be one of task, frozen, got 'gated'"):
        settings.check_method(found)


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "nothing kept": (
        "diff-pruning",
        {"keep": 0.0},
        "--keep must be greater than 0 and at most 1, got 0.0",
    ),
    "more kept than there is": ("diff-pruning", {"keep": 1.5}, "--keep must be greater than 0 and at most 1"),
    "less kept than nothing": (
        "diff-pruning",
        {"keep": -0.1},
        "--keep must be greater than 0 and at most 1, got -0.1",
    ),
    "a share that is no number": (
        "diff-pruning",
        {"keep": float("nan")},
        "--keep must be greater than 0 and at most 1, got nan",
    ),
    "no stages": ("hard-sharing", {"own": "some"}, "--own must be a number of stages, such as 2, or a .* got 'some'"),
    "half a stage": ("hard-sharing", {"own": "1.5"}, "--own must be a number of stages"),
    "fewer stages than none": ("hard-sharing", {"own": "-1"}, "--own must be a number of stages"),
    "more than everything": ("hard-sharing", {"own": "101%"}, "--own must be a number of stages"),
    "a share of nothing known": ("hard-sharing", {"own": "nan%"}, "--own must be a number of stages"),
    "nothing said": ("hard-sharing", {"own": ""}, "--own must be a number of stages"),
    "neither end": ("hard-sharing", {"share": "middle"}, "--share must be one of bottom, top, got 'middle'"),
    "no rank": ("lora", {"rank": 0}, "--rank must be at least 1, got 0"),
    "an endless scale": ("lora", {"alpha": float("inf")}, "--alpha must be a finite number of at least 0, got inf"),
    "gates of nothing known": ("taps", {"granularity": "model"}, "--granularity must be one of layer, block"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_value_that_makes_no_sense_is_refused(registry: Registry, add: Add, case: str) -> None:
    method, settings, text = BAD[case]
    with pytest.raises(SettingsError, match=text) as caught:
        add("task", method=method, **settings)
    assert caught.value.exit_code == 2
    assert registry.tasks() == ()


def test_what_add_task_takes_by_keyword_is_what_is_declared() -> None:
    """A type checker reads the names and types in ``TaskOptions``, the program reads the dataclasses."""
    declared: dict[str, Any] = {}
    for cls in (TaskSettings, *BUILT_IN):
        declared |= {name: get_type_hints(cls)[name] for name in options_of(cls)}
    typed = get_type_hints(TaskOptions)
    assert typed.pop("arguments") == Mapping[str, Any]
    assert {**typed, "data": str, "val_data": str, "test_data": str} == declared
    assert get_type_hints(ResumeOptions).keys() == {*get_type_hints(TaskOptions), "data"}


def test_no_two_methods_have_one_option_of_another_type_or_default() -> None:
    for name in {name for cls in BUILT_IN for name in options_of(cls)}:
        found = {(known.type, known.default) for cls in BUILT_IN for known in [options_of(cls).get(name)] if known}
        assert len(found) == 1, name
    assert not {name for cls in BUILT_IN for name in options_of(cls)} & set(options_of(TaskSettings))


def test_the_command_line_knows_the_options_of_every_built_in_method() -> None:
    plugins = PluginManager()
    found = {name for method in plugins.methods() for name in options_of(plugins.method(method).options)}
    assert found == {name for cls in BUILT_IN for name in options_of(cls)}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"method": "lora", "arguments": [("rank", 4)]}, "arguments must be a dict of options by name"),
        ({"method": "lora", "arguments": {3: 4}}, "arguments must be a dict of options by name"),
        ({"method": "lora", "rank": 5, "arguments": {"rank": 4}}, "--rank is given twice"),
        ({"method": "lora", "epochs": 5, "arguments": {"epochs": 4}}, "--epochs is given twice"),
        ({"method": "lora", "alpha": 10**400}, "--alpha must be a finite number of at least 0"),
        ({"method": "lora", "rank": "4"}, "--rank must be a whole number, got '4'"),
        ({"method": "lora", "rank": True}, "--rank must be a whole number, got True"),
        (
            {"method": "lora", "epoch": 3},
            "does not accept --method-arg epoch; leave it out. It takes --alpha, ",
        ),
        ({"method": "full", "rank": 3}, "It takes no options of its own"),
        ({"epochs": "3"}, "--epochs must be a whole number, got '3'"),
    ],
)
def test_what_python_may_get_wrong_is_refused_in_one_line(registry: Registry, given: Any, text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        registry.estimate("task", "base", "images", **given)
    assert TaskSettings.of({"arguments": None}) == TaskSettings()
