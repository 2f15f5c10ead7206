"""Every built-in architecture passes the suite that strangers are given; the suite fails what breaks its contract."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from taps_registry.plugins import (
    Layer,
    Partition,
    Stage,
)
from taps_registry.plugins.architectures.beit import Beit
from taps_registry.plugins.architectures.densenet import DenseNet
from taps_registry.plugins.architectures.eva import Eva
from taps_registry.plugins.architectures.generic import Generic
from taps_registry.plugins.architectures.resnet import ResNet
from taps_registry.plugins.architectures.resnetv2 import ResNetV2
from taps_registry.plugins.architectures.vit import VisionTransformer
from taps_registry.testing import (
    ArchitectureTests,
)

SMALL = {"img_size": 32}
SMALL_DENSENET = {"growth_rate": 8, "block_config": (2, 2)}
SMALL_RESNETV2 = {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "stem_chs": 8}
SMALL_BEIT = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL_EVA = {"img_size": 28, "embed_dim": 48, "depth": 2}


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


def test_no_built_in_architecture_is_left_out(built_in: Callable[[str], set[str]]) -> None:
    assert {suite.architecture.name for suite in suites()} == built_in("architecture")


def suites() -> list[Any]:
    """The suites of this file that pytest collects."""
    return [
        found() for name, found in globals().items() if name.startswith("Test") and issubclass(found, ArchitectureTests)
    ]


# A suite that nothing fails would show nothing


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
    with pytest.raises(AssertionError, match=match):
        getattr(suite, test)()


def test_an_architecture_that_add_base_does_not_choose_fails(tmp_path: Path) -> None:
    class Unknown(ArchitectureTests):
        architecture = Generic()
        models = ("test_resnet",)

    with pytest.raises(AssertionError, match="is the package with its entry point installed"):
        Unknown().test_a_task_comes_back_from_a_registry(tmp_path)
