"""Every built-in plugin passes the suites that strangers are given; each suite fails what breaks its contract."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import cycle
from math import log2
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from taps_registry.plugins import (
    Adaptation,
    Delta,
    Encoding,
    FixedSet,
    Form,
    Layer,
    LayerState,
    Method,
    MethodSettings,
    Partition,
    PluginError,
    Stage,
    Stored,
)
from taps_registry.plugins.architectures.beit import Beit
from taps_registry.plugins.architectures.densenet import DenseNet
from taps_registry.plugins.architectures.eva import Eva
from taps_registry.plugins.architectures.generic import Generic
from taps_registry.plugins.architectures.resnet import ResNet
from taps_registry.plugins.architectures.resnetv2 import ResNetV2
from taps_registry.plugins.architectures.vit import VisionTransformer
from taps_registry.plugins.encodings import COMPRESSED, Codec
from taps_registry.plugins.encodings.bf16 import BFloat16
from taps_registry.plugins.encodings.factors import PACKED
from taps_registry.plugins.encodings.fp16 import Float16
from taps_registry.plugins.encodings.fp32 import Float32
from taps_registry.plugins.encodings.integers import Int3, Int4, Int8
from taps_registry.plugins.encodings.lowrank import ERROR, LowRank
from taps_registry.plugins.encodings.minifloat import Float8Changes, levels, ratios
from taps_registry.plugins.encodings.onebit import OneBit
from taps_registry.plugins.encodings.vectors import BFloat16Values
from taps_registry.plugins.encodings.zstd import Compressed, CompressedEncoding
from taps_registry.plugins.manager import PluginManager
from taps_registry.plugins.methods.bitfit import BitFit
from taps_registry.plugins.methods.diff_pruning import DiffPruning
from taps_registry.plugins.methods.full import Full
from taps_registry.plugins.methods.hard_sharing import HardSharing
from taps_registry.plugins.methods.head_only import HeadOnly
from taps_registry.plugins.methods.lora import Lora, LoraDelta
from taps_registry.plugins.methods.norm_only import NormOnly
from taps_registry.plugins.methods.parallel_adapter import ParallelAdapter
from taps_registry.plugins.methods.piggyback import Piggyback
from taps_registry.plugins.methods.rcm import Rcm
from taps_registry.plugins.methods.reparametrised import units_of, with_head_and_norms
from taps_registry.plugins.methods.taps import Taps
from taps_registry.plugins.methods.taps_lora import TapsLora
from taps_registry.plugins.methods.taps_rank import TapsRank
from taps_registry.plugins.methods.vmt_adapter import VmtAdapter, VmtAdapterLite
from taps_registry.plugins.testing import (
    ArchitectureTests,
    CodecTests,
    EncodingTests,
    MethodTests,
    Recorded,
    TrackerTests,
)
from taps_registry.plugins.trackers import RunInfo, TrackedRun
from taps_registry.plugins.trackers.csv import CsvRun, CsvTracker
from taps_registry.plugins.trackers.mlflow import MlflowRun, MlflowTracker
from taps_registry.plugins.trackers.none import NoTracker

SMALL = {"img_size": 32}
SMALL_DENSENET = {"growth_rate": 8, "block_config": (2, 2)}
SMALL_RESNETV2 = {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "stem_chs": 8}
SMALL_BEIT = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL_EVA = {"img_size": 28, "embed_dim": 48, "depth": 2}
CLOSING = {"sparsity": 30.0, "score_lr": 0.05}  # some gates close within two epochs
IN_BLOCKS = {**CLOSING, "norms": "gated", "granularity": "block"}
KEPT = {"keep": 0.05}
GATED_NORMS = ({"norms": "gated"},)


# Architectures


class TestResNet(ArchitectureTests):
    architecture = ResNet()
    models = ("test_resnet",)


class TestResNetV2(ArchitectureTests):
    architecture = ResNetV2()
    models = ("resnetv2_18",)
    arguments = SMALL_RESNETV2


class TestDenseNet(ArchitectureTests):
    architecture = DenseNet()
    models = ("densenet121",)
    arguments = SMALL_DENSENET


class TestVisionTransformer(ArchitectureTests):
    architecture = VisionTransformer()
    models = ("test_vit",)
    arguments = SMALL


class TestBeit(ArchitectureTests):
    architecture = Beit()
    models = ("beit_base_patch16_224",)
    arguments = SMALL_BEIT


class TestEva(ArchitectureTests):
    architecture = Eva()
    models = ("eva02_tiny_patch14_224",)
    arguments = SMALL_EVA
    pixels = 28


class TestGeneric(ArchitectureTests):
    architecture = Generic()
    models = ("test_byobnet", "test_efficientnet")


# Methods


class OnTransformer:
    model = "test_vit"
    arguments = SMALL


class SomeGatesClose:
    def test_some_gates_close(self) -> None:
        states = self.rehearsal(epochs=2).adaptation.layer_states()  # type: ignore[attr-defined]
        assert {state.open for state in states} == {True, False}, "the suite's other tests show little"


class TestTaps(OnTransformer, SomeGatesClose, MethodTests):
    method = Taps()
    settings = CLOSING


class TestTapsInBlocksWithGatedNorms(SomeGatesClose, MethodTests):
    method = Taps()
    settings = IN_BLOCKS


class TestTapsLora(OnTransformer, SomeGatesClose, MethodTests):
    method = TapsLora()
    settings = CLOSING
    refused = GATED_NORMS


class TestTapsWithinABudget(OnTransformer, MethodTests):
    method = Taps()
    budget = "30%"


class TestTapsLoraWithinABudget(MethodTests):
    method = TapsLora()
    budget = "10%,100kB"


class TestTapsRank(OnTransformer, MethodTests):
    method = TapsRank()
    budget = "20%"
    refused = GATED_NORMS


class PackedFactors(MethodTests):
    """Factors in few bits: what is stored is not what the model trained with, but near it."""

    def options(self, name: str) -> dict[str, Any]:
        options = super().options(name)
        return {"encoding": options.pop("factors").integers.name, **options}


class PackedDirections(PackedFactors):
    method = TapsRank()
    budget = "20%"


class TestTapsRankInt8(PackedDirections):
    settings: ClassVar[dict[str, Any]] = {"factors": PACKED["low-rank-int8"]}
    rounding = 0.003


class TestTapsRankInt4(PackedDirections):
    settings: ClassVar[dict[str, Any]] = {"factors": PACKED["low-rank-int4"]}
    rounding = 0.05


class TestTapsRankInt3(PackedDirections):
    settings: ClassVar[dict[str, Any]] = {"factors": PACKED["low-rank-int3"]}
    rounding = 0.1


class TestLoraInt4(PackedFactors):
    method = Lora()
    settings: ClassVar[dict[str, Any]] = {"factors": PACKED["low-rank-int4"], "rank": 2}
    refused = GATED_NORMS
    rounding = 0.05


class TestTapsLoraInt4(PackedFactors):
    method = TapsLora()
    settings: ClassVar[dict[str, Any]] = {"factors": PACKED["low-rank-int4"], "rank": 2}
    refused = GATED_NORMS
    rounding = 0.05


class TestHeadOnly(MethodTests):
    method = HeadOnly()


class TestNormOnly(MethodTests):
    method = NormOnly()


class TestBitFit(OnTransformer, MethodTests):
    method = BitFit()


class TestFull(MethodTests):
    method = Full()


class TestHardSharing(MethodTests):
    method = HardSharing()
    refused = ({"share": "middle"}, {"own": "some"}, {"own": "101%"})


class TestLora(MethodTests):
    method = Lora()
    refused = GATED_NORMS


class TestRcm(MethodTests):
    method = Rcm()
    refused = GATED_NORMS


class TestParallelAdapter(MethodTests):
    method = ParallelAdapter()
    refused = GATED_NORMS


class TestDiffPruning(MethodTests):
    method = DiffPruning()
    settings = KEPT
    refused = (*GATED_NORMS, {"keep": 0.0}, {"keep": 1.5})


class TestPiggyback(MethodTests):
    method = Piggyback()


class TestVmtAdapter(OnTransformer, MethodTests):
    method = VmtAdapter()
    refused = GATED_NORMS


class TestVmtAdapterLite(OnTransformer, MethodTests):
    method = VmtAdapterLite()
    refused = GATED_NORMS


# Encodings


class TestFloat32(EncodingTests):
    encoding = Float32()


class TestBFloat16Values(CodecTests):
    encoding: ClassVar[Codec] = BFloat16Values()

    def tolerance(self, value: Tensor, delta: Tensor) -> Tensor:
        return 2.0**-8 * value.abs()  # 8 significant bits, rounded to the nearest


class TestFloat8Changes(CodecTests):
    encoding: ClassVar[Codec] = Float8Changes()

    def tolerance(self, value: Tensor, delta: Tensor) -> Tensor:
        """Half a step of 4 bits of mantissa, or of the subnormals; a whole one where a sign would turn."""
        return torch.maximum(delta.abs() / 16, delta.abs().max() / 1984)

    def test_a_variance_that_has_almost_gone_stays_above_zero(self) -> None:
        base = torch.logspace(-6, 2, 400)
        for shrunk in (0.0, 1e-30, 1e-6, 1e-3, 0.3):
            value = base * shrunk
            found = self.encoding.decode(self.encoding.encode(value, base), base)
            assert (found >= 0).all()
            if shrunk:
                assert ((found / base).log2() - (value / base).log2()).abs().max() <= -log2(shrunk) / 16 + 1e-6

    def test_the_levels_of_ratios_are_what_they_should_be(self) -> None:
        expected = [2.0 ** (level / 1024) for level in levels(16, 8).tolist()]
        torch.testing.assert_close(ratios(), torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)


class TestBFloat16(EncodingTests):
    encoding = BFloat16()

    def tolerance(self, value: Tensor, delta: Tensor) -> Tensor:
        return 2.0**-8 * delta.abs()  # 8 significant bits, rounded to the nearest


class TestFloat16(EncodingTests):
    encoding = Float16()

    def tolerance(self, value: Tensor, delta: Tensor) -> Tensor:
        """11 significant bits, rounded to the nearest; the smallest step is 2^-24; cut off at the largest number."""
        return 2.0**-11 * delta.abs() + 2.0**-25 + (delta.abs() - 65504).clamp(min=0)


class Quantised(EncodingTests):
    """No value is further off than its row's root of the sum of squares, which the chosen scale makes no larger."""

    steps: int

    def tolerance(self, value: Tensor, delta: Tensor) -> Tensor:
        rows = delta.reshape(len(delta), -1)
        widest = rows.abs().amax(dim=1, keepdim=True) * rows.shape[1] ** 0.5 / (2 * self.steps)
        return widest.expand_as(rows).reshape(delta.shape)


class TestInt8(Quantised):
    encoding = Int8()
    steps = 127


class TestInt4(Quantised):
    encoding: ClassVar[Encoding] = Int4()
    steps = 7


class TestLowRank(EncodingTests):
    """No value is further off than all of them together: by what is cut off, and by 8 bits of both factors."""

    encoding = LowRank()

    def tolerance(self, value: Tensor, delta: Tensor) -> Tensor:
        return torch.full_like(delta, 1.1 * ERROR * float(delta.double().norm()))


class TestCompressedFloat32(EncodingTests):
    encoding = CompressedEncoding(Float32())


class TestCompressedInt4(TestInt4):
    encoding = CompressedEncoding(Int4())


class TestCompressedBFloat16Values(TestBFloat16Values):
    encoding = Compressed(BFloat16Values())


class TestCompressedFloat8Changes(TestFloat8Changes):
    encoding = Compressed(Float8Changes())


class TestInt3(Quantised):
    encoding = Int3()
    steps = 3


class TestOneBit(EncodingTests):
    encoding = OneBit()

    def tolerance(self, value: Tensor, delta: Tensor) -> Tensor:
        """A value is off by its distance from the mean size of its row."""
        rows = delta.reshape(len(delta), -1).abs()
        return (rows - rows.mean(dim=1, keepdim=True)).abs().reshape(delta.shape)


# Trackers


class TestCsvTracker(TrackerTests):
    tracker = CsvTracker()

    def recorded(self, home: Path, run: TrackedRun) -> Recorded:
        assert isinstance(run, CsvRun)
        metrics: dict[str, dict[int, float]] = defaultdict(dict)
        if (run.folder / "metrics.csv").exists():
            with (run.folder / "metrics.csv").open(newline="") as file:
                for step, name, value in csv.reader(file):
                    metrics[name][int(step)] = float(value)
        path = run.folder / "parameters.json"
        parameters = json.loads(path.read_text("utf-8")) if path.exists() else {}
        pictures = frozenset(path.name for path in run.folder.glob("*.png"))
        return Recorded({name: str(value) for name, value in parameters.items()}, metrics, pictures)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
class TestMlflowTracker(TrackerTests):
    """All in one store: each takes seconds to make."""

    tracker = MlflowTracker()
    store = ""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _store(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.store = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"

    def uri(self, home: Path) -> str:
        return self.store

    def recorded(self, home: Path, run: TrackedRun) -> Recorded:
        assert isinstance(run, MlflowRun)
        data = run.client.get_run(run.id).data
        histories = {name: run.client.get_metric_history(run.id, name) for name in data.metrics}
        metrics = {name: {found.step: found.value for found in history} for name, history in histories.items()}
        pictures = frozenset(found.path for found in run.client.list_artifacts(run.id))
        return Recorded(data.params, metrics, pictures)


class TestNoTracker(TrackerTests):
    tracker = NoTracker()


# All of them

SUITES: dict[type, str] = {
    ArchitectureTests: "architecture",
    MethodTests: "method",
    EncodingTests: "encoding",
    TrackerTests: "tracker",
}


def suites(contract: type) -> list[Any]:
    """The suites of this file that pytest collects."""
    return [found() for name, found in globals().items() if name.startswith("Test") and issubclass(found, contract)]


@pytest.mark.parametrize("contract", SUITES, ids=SUITES.values())
def test_no_built_in_plugin_is_left_out(contract: type) -> None:
    kind = SUITES[contract]
    tested = {getattr(suite, kind).name.removesuffix(COMPRESSED) for suite in suites(contract)}
    brought = [what.partition(":")[0].split() for info in ours() for what in info.provides]
    there = {name for brought_kind, name in brought if brought_kind == kind}
    assert tested == there


def test_every_form_is_decoded_by_a_suite() -> None:
    """By that of the method that it belongs to, or by its own."""
    decoded = {
        factors.form
        for suite in suites(MethodTests)
        for factors in suite.rehearsal(epochs=1).adaptation.factors().values()
    }
    vectors = {BFloat16Values.name, Float8Changes.name}
    assert decoded | vectors == forms()
    assert vectors <= {suite.encoding.name for suite in suites(CodecTests)}


def ours() -> list[Any]:
    return [info for info in PluginManager().plugins() if info.distribution == "taps-registry"]


def forms() -> set[str]:
    """Names of forms that are no --encoding."""
    brought = [what.partition(":")[0].split() for info in ours() for what in info.provides]
    return {name for kind, name in brought if kind == "form"}


# A suite that nothing fails would show nothing


def fails(suite: Any, test: str, match: str, *arguments: Any) -> None:
    with pytest.raises(AssertionError, match=match):
        getattr(suite, test)(*arguments)


def class_names(cases: Iterable[tuple[Any, str, str]]) -> list[str]:
    return [type(broken).__name__ for broken, _, _ in cases]


class Broken(ResNet):
    """An architecture with one thing wrong."""

    def __init__(self, **wrong: Callable[..., Any]) -> None:
        for name, method in wrong.items():
            setattr(self, name, partial(method, self))


def changed(**parts: Callable[[Partition], Any]) -> Callable[..., Partition]:
    """A ``partition`` that gets some parts wrong."""

    def partition(self: Broken, model: nn.Module) -> Partition:
        found = ResNet.partition(self, model)
        return replace(found, **{name: make(found) for name, make in parts.items()})

    return partition


def with_first(found: Partition, **wrong: Any) -> tuple[Layer, ...]:
    return (replace(found.layers[0], **wrong), *found.layers[1:])


def in_turn() -> Callable[..., Partition]:
    """A ``partition`` that answers otherwise each second time."""
    order = cycle((1, -1))
    return changed(layers=lambda found: found.layers[:: next(order)])


def with_a_step_too_many(self: Broken, model: nn.Module) -> tuple[Stage, ...]:
    *stages, head = ResNet.stages(self, model)
    return (*stages, replace(head, run=lambda tensor: head.run(tensor).relu()))


def with_the_heads_stage_misnamed(self: Broken, model: nn.Module) -> tuple[Stage, ...]:
    return tuple(replace(stage, name=stage.name.replace("head", "fc")) for stage in ResNet.stages(self, model))


def with_copies(self: Broken, model: nn.Module) -> tuple[Stage, ...]:
    return ResNet.stages(self, deepcopy(model))


ORDER, STAGES = "test_layers_are_in_forward_order", "test_stages_are_the_forward_pass_bit_for_bit"
HEAD, LAYER = (
    "test_the_head_is_all_that_the_number_of_classes_changes",
    "test_a_layer_has_a_kind_a_module_and_its_weight_first",
)
BROKEN_ARCHITECTURES: tuple[tuple[Broken, str, str], ...] = (
    (
        Broken(matches=lambda self, model: True),
        "test_it_knows_its_models_and_no_foreign_one",
        "says yes to test_byobnet",
    ),
    (
        Broken(matches=lambda self, model: False),
        "test_it_knows_its_models_and_no_foreign_one",
        "says no to test_resnet",
    ),
    (
        Broken(partition=changed(shared=lambda found: found.head)),
        "test_every_tensor_is_in_exactly_one_place",
        "more than one",
    ),
    (Broken(partition=in_turn()), "test_a_model_is_always_taken_apart_alike", r"partition\(\) differs"),
    (Broken(partition=changed(head=lambda found: ())), HEAD, "the head is empty"),
    (Broken(partition=changed(head=lambda found: found.head[:1])), HEAD, "but are not in the head"),
    (Broken(partition=changed(layers=lambda found: with_first(found, kind=""))), LAYER, "a layer has a kind"),
    (
        Broken(partition=changed(layers=lambda found: with_first(found, tensors=("bn1.weight",)))),
        LAYER,
        "is the weight",
    ),
    (Broken(partition=changed(layers=lambda found: with_first(found, name="first"))), LAYER, "the path of its module"),
    (
        Broken(partition=changed(norms=lambda found: found.norms[1:])),
        "test_a_norm_is_a_module_with_its_statistics",
        "statistics that are in no norm",
    ),
    (Broken(partition=changed(layers=lambda found: found.layers[::-1])), ORDER, "not in forward order"),
    (Broken(stages=with_a_step_too_many), STAGES, r"are not forward\(\)"),
    (Broken(stages=with_the_heads_stage_misnamed), STAGES, "the last stage is 'head'"),
    (Broken(stages=with_copies), "test_stages_compute_with_the_models_own_tensors", "does not compute with its own"),
)


@pytest.mark.parametrize(("architecture", "test", "match"), BROKEN_ARCHITECTURES)
def test_a_broken_architecture_fails(architecture: Broken, test: str, match: str) -> None:
    suite = TestResNet()
    suite.architecture = architecture  # type: ignore[misc]
    fails(suite, test, match)


def test_an_architecture_that_add_base_does_not_choose_fails(tmp_path: Path) -> None:
    class Unknown(ArchitectureTests):
        architecture = Generic()
        models = ("test_resnet",)

    fails(
        Unknown(), "test_a_task_comes_back_from_a_registry", "is the package with its entry point installed", tmp_path
    )


class Mistaken(FixedSet):
    """Trains the head; its adaptation is the part that is wrong."""

    name = "mistaken"
    summary = "the head"
    kind: Callable[..., Adaptation] = Adaptation

    def tensors(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Iterable[str]:
        return partition.head

    def adapt(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Adaptation:
        return type(self).kind(model, partition, self.tensors(model, partition, settings), settings)


class SaysTooLittle(Mistaken):
    def least(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Stored:
        return Stored(frozenset(partition.head[:1]))


class LeavesTheHead(Mistaken):
    def tensors(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Iterable[str]:
        return partition.norm_tensors()


class Surprised(Mistaken):
    def least(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Stored:
        model.requires_grad_(False)
        return super().least(model, partition, settings)


class Lenient(Lora):
    def check(self, settings: MethodSettings) -> None:
        pass


class Speechless(Lora):
    def check(self, settings: MethodSettings) -> None:
        if settings.norms == "gated":
            raise ValueError


class Secretive(Lora):
    options = frozenset({"alpha", "norms"})


class MovesStatistics(Mistaken):
    class kind(Adaptation):  # noqa: N801
        def train(self) -> None:
            self.model.train()


class MovesMore(Mistaken):
    class kind(Adaptation):  # noqa: N801
        def after_step(self) -> None:
            with torch.no_grad():
                self.model.get_parameter("conv1.0.weight").add_(1.0)


class StandsStill(Mistaken):
    class kind(Adaptation):  # noqa: N801
        def before_step(self, lr: float) -> None:
            self.model.zero_grad()


class Impatient(Mistaken):
    class kind(Adaptation):  # noqa: N801
        def after_backward(self) -> None:
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)


class Forgetful(TapsLora):
    def adapt(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Adaptation:
        made = super().adapt(model, partition, settings)
        made.load_state_dict = lambda state: None  # type: ignore[method-assign]
        return made


class Confused(Full):
    def adapt(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Adaptation:
        made, base = super().adapt(model, partition, settings), deepcopy(model.state_dict())
        made.load_state_dict = lambda state: model.load_state_dict(base)  # type: ignore[assignment]
        return made


class Momentous(Mistaken):
    """Keeps a sum over all steps, but not in its state."""

    class kind(Adaptation):  # noqa: N801
        steps = 0

        def before_step(self, lr: float) -> None:
            self.steps += 1
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.add_(float(self.steps))


class KeepsAnObject(Mistaken):
    class kind(Adaptation):  # noqa: N801
        def state_dict(self) -> dict[str, Any]:
            return {"settings": self.settings}


class Lies(Mistaken):
    class kind(Adaptation):  # noqa: N801
        def delta(self) -> Delta:
            made = super().delta()
            return replace(made, tensors=dict(list(made.tensors.items())[:1]))


class HandsOutTheModel(Mistaken):
    class kind(Adaptation):  # noqa: N801
        def delta(self) -> Delta:
            return replace(super().delta(), tensors={name: self.model.state_dict()[name] for name in self.trained})


class BackwardStates(Mistaken):
    class kind(Adaptation):  # noqa: N801
        def layer_states(self) -> tuple[LayerState, ...]:
            return super().layer_states()[::-1]


class Replaces(Mistaken):
    def adapt(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Adaptation:
        model.register_module("act1", nn.GELU())
        return super().adapt(model, partition, settings)


class NeverSettles(Mistaken):
    class kind(Adaptation):  # noqa: N801
        def settled(self, epoch: int) -> bool:
            return False


class Unscaled(Lora):
    """Stores factors that its form makes another weight of."""

    class unit(LoraDelta):  # noqa: N801
        def parts(self) -> dict[str, Tensor]:
            return dict(self.factors)

    def adapt(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Adaptation:
        generator = torch.Generator().manual_seed(0)
        units = units_of(self.name, model, partition.layers, lambda live: self.unit(live, settings, generator))
        return with_head_and_norms(model, partition, units, settings)


class Restless(VmtAdapter):
    """Draws from somewhere else than the seed."""

    drawn = torch.Generator().manual_seed(0)

    def extend(self, model: nn.Module, arguments: Mapping[str, Any]) -> None:
        super().extend(model, arguments)
        for name in _added(model):
            nn.init.normal_(model.get_parameter(name), generator=self.drawn)


class Unfrozen(VmtAdapter):
    def tensors(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> frozenset[str]:
        return super().tensors(model, partition, replace(settings, train_common=True))


def _added(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters() if name.startswith("vmt_adapter")]


STORED, MOVES = "test_what_is_stored_lies_between_least_and_most", "test_only_what_is_stored_moves"
RESUMES, DELTA = "test_a_resumed_run_goes_on_as_an_undisturbed_one", "test_the_delta_is_what_stored_says"
CHECKS, EXTENDS = "test_it_refuses_what_it_cannot_work_with_by_a_value_error", "test_an_extension_is_the_same_each_time"
BROKEN_METHODS: tuple[tuple[Method, str, str], ...] = (
    (SaysTooLittle(), STORED, r"after epoch 0 .* would be stored; least\(\) said .*, most\(\)"),
    (LeavesTheHead(), MOVES, "a head of its own"),
    (Surprised(), "test_asking_what_it_would_store_changes_nothing", r"least\(\) makes the model trainable"),
    (Lenient(), CHECKS, r"check\(\) takes {'norms': 'gated'}"),
    (Speechless(), CHECKS, "without a word"),
    (Secretive(), "test_options_that_it_does_not_list_change_nothing", "depends on one of .*rank"),
    (MovesStatistics(), MOVES, "running statistics move"),
    (MovesMore(), MOVES, r"move, but are not stored: conv1\.0\.weight"),
    (StandsStill(), MOVES, "moved nothing"),
    (Replaces(), "test_no_module_is_replaced", r"adapt\(\) replaces modules"),
    (NeverSettles(), "test_the_last_epoch_may_be_chosen", r"settled\(\) says no to the last epoch"),
    (Impatient(), "test_a_scaled_loss_trains_alike", "the loss's scale changes"),
    (Forgetful(), RESUMES, r"load_state_dict\(\) does not bring back"),
    (Confused(), RESUMES, r"load_state_dict\(\) does not bring back bn1"),
    (Momentous(), RESUMES, r"what state_dict\(\) gives is not all"),
    (KeepsAnObject(), RESUMES, "holds a MethodSettings"),
    (Lies(), DELTA, r"something else than stored\(\) says"),
    (HandsOutTheModel(), DELTA, "is no copy"),
    (BackwardStates(), DELTA, "not in forward order"),
    (Unscaled(), "test_factors_decode_to_what_the_model_computes_with", "off what the model computes with"),
    (Restless(), EXTENDS, "gives different models"),
    (Unfrozen(), EXTENDS, "must stay frozen"),
)


@pytest.mark.parametrize(("method", "test", "match"), BROKEN_METHODS, ids=class_names(BROKEN_METHODS))
def test_a_broken_method_fails(method: Method, test: str, match: str) -> None:
    suite = TestVmtAdapter() if isinstance(method, VmtAdapter) else TestLora()
    suite.method = method  # type: ignore[misc]
    fails(suite, test, match)


def test_a_form_that_takes_any_parts_fails() -> None:
    class Zeros(Form):
        def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
            return torch.zeros_like(base)

    class Manager(PluginManager):
        def form(self, name: str) -> Form:
            return Zeros()

    suite = TestLora()
    suite.manager = Manager()
    fails(suite, "test_wrong_factors_are_refused", "low-rank decodes parts without 'up'; that is a ValueError")


def test_a_method_that_no_installed_plugin_brings_fails(tmp_path: Path) -> None:
    suite = TestLora()
    suite.method = Mistaken()  # type: ignore[misc]
    with pytest.raises(PluginError, match="There is no method 'mistaken'"):
        suite.test_a_task_keeps_to_its_estimate_and_a_second_one_leaves_it_alone(tmp_path)
    suite.method = Lenient()  # type: ignore[misc]
    fails(suite, "test_an_interrupted_task_resumes_to_the_same_artifact", "which one is under test", tmp_path)


class Careless(BFloat16):
    """Takes whatever parts it is given."""

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        delta = parts.get("", torch.zeros(1)).float().reshape(-1)[: base.numel()]
        return base + delta.expand(base.numel()).reshape(base.shape)


class WritesToTheBase(BFloat16):
    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        return base.add_(parts[""].float())


class Undecided(BFloat16):
    drawn = torch.Generator().manual_seed(0)

    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        noise = 1 + 0.01 * torch.rand(value.shape, generator=self.drawn)
        return super().encode(base + (value - base) * noise, base)


class Miscounts(BFloat16):
    def nbytes(self, shape: tuple[int, ...]) -> int:
        return 2 * shape[0] if shape else 2


class MisnamesParts(BFloat16):
    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        return {"a::b": value - base}


class Flattens(BFloat16):
    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        return super().decode(parts, base).reshape(-1)


BROKEN_ENCODINGS: tuple[tuple[Encoding, str, str], ...] = (
    (Flattens(), "test_every_value_comes_back_as_near_as_promised", "decodes to the shape"),
    (Undecided(), "test_the_same_tensor_gives_the_same_bits_each_time", "other bits the second time"),
    (WritesToTheBase(), "test_what_it_is_given_is_not_written_to", "are changed"),
    (Miscounts(), "test_the_bytes_are_known_beforehand", r"nbytes\(\) said"),
    (MisnamesParts(), "test_parts_are_tensors_on_the_cpu_by_name", "stands between"),
    (Careless(), "test_wrong_parts_are_refused", r"decode\(\) takes parts"),
)


@pytest.mark.parametrize(("encoding", "test", "match"), BROKEN_ENCODINGS, ids=class_names(BROKEN_ENCODINGS))
def test_a_broken_encoding_fails(encoding: Encoding, test: str, match: str) -> None:
    suite = TestBFloat16()
    suite.encoding = encoding  # type: ignore[misc]
    fails(suite, test, match)


@pytest.mark.parametrize("exact", [True, False])
def test_an_encoding_that_promises_too_much_fails(exact: bool) -> None:
    class TooExact(EncodingTests):
        encoding = BFloat16()

    suite = TooExact()
    suite.encoding.exact = exact
    match = "not exact to the last bit" if exact else r"further off than tolerance\(\) says"
    fails(suite, "test_every_value_comes_back_as_near_as_promised", match)


class LosesThings(CsvRun):
    def parameters(self, values: Mapping[str, object]) -> None:
        (self.folder / "parameters.json").write_text(json.dumps({**values}, default=str))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        super().metrics(values, 1)

    def picture(self, path: Path) -> None:
        (self.folder / "links").mkdir()
        (self.folder / "links" / path.name).symlink_to(path)

    def end(self, state: str) -> None:
        if state == "failed":
            raise AssertionError(f"no such state: {state}")


class LosingTracker(CsvTracker):
    """Begins another run where one was to be resumed."""

    def follow(self, run: RunInfo) -> TrackedRun:
        return LosesThings(run.home / f"{run.run}{'-again' if run.resumed else ''}")


@pytest.mark.parametrize(
    ("test", "match"),
    [
        ("test_parameters_are_kept_and_may_be_said_again", "parameters are lost or changed"),
        ("test_metrics_are_kept_by_step", r"metrics\(\) was told"),
        ("test_a_picture_outlives_its_file", r"picture\(\) did not keep"),
        ("test_a_run_ends_in_any_of_the_states", "no such state: failed"),
        ("test_a_run_is_taken_up_again_by_its_id", "began another run"),
    ],
)
def test_a_broken_tracker_fails(tmp_path: Path, test: str, match: str) -> None:
    suite = TestCsvTracker()
    suite.tracker = LosingTracker()  # type: ignore[misc]
    fails(suite, test, match, tmp_path)


def test_the_suites_themselves_are_not_collected() -> None:
    assert [contract.__name__ for contract in SUITES if contract.__name__.startswith("Test")] == []
