"""Every built-in method passes the suite that strangers are given; the suite fails what breaks its contract."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from taps_registry.plugins import (
    Adaptation,
    Delta,
    FixedSet,
    Form,
    LayerState,
    Method,
    MethodSettings,
    Partition,
    PluginError,
    Stored,
)
from taps_registry.plugins.encodings import Codec
from taps_registry.plugins.encodings.low_rank import PACKED
from taps_registry.plugins.manager import PluginManager
from taps_registry.plugins.methods.bitfit import BitFit
from taps_registry.plugins.methods.diff_pruning import DiffPruning
from taps_registry.plugins.methods.full import Full
from taps_registry.plugins.methods.hard_sharing import HardSharing
from taps_registry.plugins.methods.head_only import HeadOnly
from taps_registry.plugins.methods.lora import Lora, LoraDelta
from taps_registry.plugins.methods.norm_only import NormOnly
from taps_registry.plugins.methods.options import LoraOptions
from taps_registry.plugins.methods.parallel_adapter import ParallelAdapter
from taps_registry.plugins.methods.piggyback import Piggyback
from taps_registry.plugins.methods.rcm import Rcm
from taps_registry.plugins.methods.reparametrised import Unit, units_of
from taps_registry.plugins.methods.taps import Taps
from taps_registry.plugins.methods.taps_rank import TapsRank
from taps_registry.plugins.methods.vmt_adapter import VmtAdapter, VmtAdapterLite
from taps_registry.plugins.options import Options, option
from taps_registry.testing import (
    MethodTests,
)

SMALL = {"img_size": 32}
CLOSING = {"sparsity": 30.0, "score_lr": 0.05, "penalty": "uniform"}  # some gates close within two epochs
IN_BLOCKS = {**CLOSING, "norms": "gated", "granularity": "block"}
KEPT = {"keep": 0.05}


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


class TestTapsWithinABudget(OnTransformer, MethodTests):
    method = Taps()
    budget = "30%"


class TestTapsRank(OnTransformer, MethodTests):
    method = TapsRank()
    budget = "20%"


class PackedFactors(MethodTests):
    """Factors in few bits: what is stored is not what the model trained with, but near it."""

    def options(self, name: str) -> dict[str, Any]:
        options = super().options(name)
        return {"encoding": options.pop("low_rank_form").integers.name, **options}


class PackedDirections(PackedFactors):
    method = TapsRank()
    budget = "20%"


class TestTapsRankInt8(PackedDirections):
    settings: ClassVar[dict[str, Any]] = {"low_rank_form": PACKED["low-rank-int8"]}
    rounding = 0.003


class TestTapsRankInt4(PackedDirections):
    settings: ClassVar[dict[str, Any]] = {"low_rank_form": PACKED["low-rank-int4"]}
    rounding = 0.05


class TestTapsRankInt3(PackedDirections):
    settings: ClassVar[dict[str, Any]] = {"low_rank_form": PACKED["low-rank-int3"]}
    rounding = 0.1


class TestLoraInt4(PackedFactors):
    method = Lora()
    settings: ClassVar[dict[str, Any]] = {"low_rank_form": PACKED["low-rank-int4"], "rank": 2}
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


class TestRcm(MethodTests):
    method = Rcm()


class TestParallelAdapter(MethodTests):
    method = ParallelAdapter()


class TestDiffPruning(MethodTests):
    method = DiffPruning()
    settings = KEPT


class TestPiggyback(MethodTests):
    method = Piggyback()


class TestVmtAdapter(OnTransformer, MethodTests):
    method = VmtAdapter()


class TestVmtAdapterLite(OnTransformer, MethodTests):
    method = VmtAdapterLite()


def test_no_built_in_method_is_left_out(built_in: Callable[[str], set[str]]) -> None:
    assert {suite.method.name for suite in suites()} == built_in("method")


def test_every_form_that_is_no_codec_is_decoded_by_the_suite_of_a_method(built_in: Callable[[str], set[str]]) -> None:
    decoded = {
        factors.form for suite in suites() for factors in suite.rehearsal(epochs=1).adaptation.factors().values()
    }
    assert decoded == {name for name in built_in("form") if not isinstance(PluginManager().form(name), Codec)}


def suites() -> list[Any]:
    """The suites of this file that pytest collects."""
    return [found() for name, found in globals().items() if name.startswith("Test") and issubclass(found, MethodTests)]


# A suite that nothing fails would show nothing


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
    pass


class Speechless(Mistaken):
    def check(self, settings: MethodSettings) -> None:
        if settings.weight_decay > 1:
            raise ValueError


class Helpless(Mistaken):
    @dataclass(frozen=True)
    class options(Options):  # noqa: N801
        depth: int = option(2, "")


class Undeclared(Mistaken):
    @dataclass(frozen=True)
    class options(Options):  # noqa: N801
        depth: int = 2


class Boundless(Lora):
    @dataclass(frozen=True)
    class options(LoraOptions):  # noqa: N801
        @classmethod
        def of(cls, given: Mapping[str, Any]) -> LoraOptions:
            return cls()


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


class Forgetful(Lora):
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

    def units(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> list[Unit]:
        generator = torch.Generator().manual_seed(0)
        return units_of(self.name, model, partition.layers, lambda live: self.unit(live, settings, generator))


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
DECLARES = "test_its_options_are_declared_with_help_and_a_default_that_makes_sense"
CHECKS, EXTENDS = "test_it_refuses_what_it_cannot_work_with_by_a_value_error", "test_an_extension_is_the_same_each_time"
BROKEN_METHODS: tuple[tuple[Method, str, str], ...] = (
    (SaysTooLittle(), STORED, r"after epoch 0 .* would be stored; least\(\) said .*, most\(\)"),
    (LeavesTheHead(), MOVES, "a head of its own"),
    (Surprised(), "test_asking_what_it_would_store_changes_nothing", r"least\(\) makes the model trainable"),
    (Lenient(), CHECKS, r"check\(\) takes {'weight_decay': 2.0}"),
    (Speechless(), CHECKS, "without a word"),
    (Helpless(), DECLARES, "depth has no help"),
    (Undeclared(), DECLARES, r"declared without option\(\): depth"),
    (Boundless(), "test_values_outside_of_an_options_range_are_refused", "norms takes"),
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


@pytest.mark.parametrize(
    ("method", "test", "match"), BROKEN_METHODS, ids=[type(broken).__name__ for broken, _, _ in BROKEN_METHODS]
)
def test_a_broken_method_fails(method: Method, test: str, match: str) -> None:
    suite = TestVmtAdapter() if isinstance(method, VmtAdapter) else TestLora()
    suite.method = method  # type: ignore[misc]
    suite.refused = ({"weight_decay": 2.0},)  # type: ignore[misc]
    with pytest.raises(AssertionError, match=match):
        getattr(suite, test)()


def test_a_form_that_takes_any_parts_fails() -> None:
    class Zeros(Form):
        def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
            return torch.zeros_like(base)

    class Manager(PluginManager):
        def form(self, name: str) -> Form:
            return Zeros()

    suite = TestLora()
    suite.manager = Manager()
    with pytest.raises(AssertionError, match="low-rank decodes parts without 'up'; that is a ValueError"):
        suite.test_wrong_factors_are_refused()


def test_a_method_that_no_installed_plugin_brings_fails(tmp_path: Path) -> None:
    suite = TestLora()
    suite.method = Mistaken()  # type: ignore[misc]
    with pytest.raises(PluginError, match="There is no method 'mistaken'"):
        suite.test_a_task_keeps_to_its_estimate_and_a_second_one_leaves_it_alone(tmp_path)
    suite.method = Lenient()  # type: ignore[misc]
    with pytest.raises(AssertionError, match="which one is under test"):
        suite.test_an_interrupted_task_resumes_to_the_same_artifact(tmp_path)
