"""The plugin keeps the contract of an architecture, for both versions and for a norm before the pooling."""

import timm
from taps_convnext import ConvNeXt

from taps_registry.testing import ArchitectureTests


def norm_first(classes: int):
    return timm.create_model("test_convnext", num_classes=classes, head_norm_first=True)


class TestConvNeXt(ArchitectureTests):
    architecture = ConvNeXt()
    models = ("test_convnext", "test_convnext2", norm_first)


def test_the_blocks_are_those_of_timm() -> None:
    layers = ConvNeXt().partition(timm.create_model("test_convnext")).layers
    places = {layer.name: (layer.stage, layer.block) for layer in layers}
    assert places["stem.0"] == ("stem", "stem")
    assert places["stages.2.blocks.3.mlp.fc1"] == ("stages.2", "stages.2.blocks.3")
    assert places["stages.1.downsample.1"] == ("stages.1", "stages.1.downsample")
