"""ResNet with pre-activation, and BiT, in timm's ``resnetv2`` module: stem, ``stages.0`` to ``stages.3``, norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..spec import Registrar, hookimpl
from . import Stage
from .chain import active, is_overridden
from .generic import Generic

if TYPE_CHECKING:
    from torch import nn


class ResNetV2(Generic):
    """Gates every convolution; those of BiT keep their weights as they are before standardisation."""

    name = "resnetv2"
    fallback = False

    def matches(self, model: nn.Module) -> bool:
        from timm.models.resnetv2 import ResNetV2 as TimmResNetV2

        return isinstance(model, TimmResNetV2)

    def stage(self, path: str) -> str:
        return ".".join(path.split(".")[: 2 if path.startswith("stages") else 1])

    def stages(self, model: nn.Module) -> tuple[Stage, ...]:
        from timm.models.resnetv2 import ResNetV2 as TimmResNetV2

        if not isinstance(model, TimmResNetV2) or is_overridden(model, TimmResNetV2):
            return ()
        return active(
            Stage("stem", model.stem),
            *(Stage(f"stages.{index}", stage) for index, stage in enumerate(model.stages)),
            Stage("norm", model.norm),
            Stage("head", model.forward_head),
        )


@hookimpl
def register_architectures(registrar: Registrar) -> None:
    registrar.architecture(ResNetV2())
