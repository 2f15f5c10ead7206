"""ResNet with pre-activation, and BiT, in timm's ``resnetv2`` module: stem, ``stages.0`` to ``stages.3``, norm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..spec import Registrar, hookimpl
from . import Stage
from .family import Family


class ResNetV2(Family):
    """Gates every convolution; those of BiT keep their weights as they are before standardisation."""

    name = "resnetv2"

    def timm_class(self) -> Any:
        from timm.models.resnetv2 import ResNetV2 as TimmResNetV2

        return TimmResNetV2

    def stage(self, path: str) -> str:
        return ".".join(path.split(".")[: 2 if path.startswith("stages") else 1])

    def parts(self, model: Any) -> Iterator[Stage]:
        yield Stage("stem", model.stem)
        yield from (Stage(f"stages.{index}", stage) for index, stage in enumerate(model.stages))
        yield Stage("norm", model.norm)
        yield Stage("head", model.forward_head)


@hookimpl
def register_architectures(registrar: Registrar) -> None:
    registrar.architecture(ResNetV2())
