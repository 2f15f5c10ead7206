"""ResNet and its relatives in timm's ``resnet`` module: stem, then ``layer1`` to ``layer4``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..spec import Registrar, hookimpl
from . import Stage
from .chain import chain, is_overridden
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

    def block(self, path: str) -> str:
        return ".".join(path.split(".")[:2]) if path.startswith("layer") else "stem"

    def stages(self, model: nn.Module) -> tuple[Stage, ...]:
        from timm.models.resnet import ResNet as TimmResNet

        if not isinstance(model, TimmResNet) or is_overridden(model, TimmResNet):
            return ()
        layers = [(name, module) for name, module in model.named_children() if name.startswith("layer")]
        return (
            Stage("stem", chain(model.conv1, model.bn1, model.act1, model.maxpool)),
            *(Stage(name, module) for name, module in layers),
            Stage("head", model.forward_head),
        )


@hookimpl
def register_architectures(registrar: Registrar) -> None:
    registrar.architecture(ResNet())
