"""ResNet and its relatives in timm's ``resnet`` module: stem, then ``layer1`` to ``layer4``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..spec import Registrar, hookimpl
from . import Stage
from .family import Family, chain


class ResNet(Family):
    """Gates every convolution: the stem, the blocks, and the 1x1 convolutions of the shortcuts."""

    name = "resnet"

    def timm_class(self) -> Any:
        from timm.models.resnet import ResNet as TimmResNet

        return TimmResNet

    def stage(self, path: str) -> str:
        first = path.partition(".")[0]
        return first if first.startswith("layer") else "stem"

    def block(self, path: str) -> str:
        return ".".join(path.split(".")[:2]) if path.startswith("layer") else "stem"

    def parts(self, model: Any) -> Iterator[Stage]:
        yield Stage("stem", chain(model.conv1, model.bn1, model.act1, model.maxpool))
        yield from (Stage(name, module) for name, module in model.named_children() if name.startswith("layer"))
        yield Stage("head", model.forward_head)


@hookimpl
def register_architectures(registrar: Registrar) -> None:
    registrar.architecture(ResNet())
