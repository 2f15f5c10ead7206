"""ResNet and its relatives in timm's ``resnet`` module: stem, then ``layer1`` to ``layer4``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..spec import Registrar, hookimpl
from .generic import Generic

if TYPE_CHECKING:
    from torch import nn


class ResNet(Generic):
    """Gates every convolution: the stem, the blocks, and the 1x1 convolutions of the shortcuts."""

    name = "resnet"
    fallback = False

    def matches(self, model: nn.Module) -> bool:
        from timm.models.resnet import ResNet as TimmResNet

        return isinstance(model, TimmResNet)

    def stage(self, path: str) -> str:
        first = path.partition(".")[0]
        return first if first.startswith("layer") else "stem"


@hookimpl
def register_architectures(registrar: Registrar) -> None:
    registrar.architecture(ResNet())
