"""DenseNet: stem, dense blocks with the transition that closes each, final norm."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from ..spec import Registrar, hookimpl
from . import Stage
from .chain import chain, is_overridden
from .generic import Generic

if TYPE_CHECKING:
    from torch import nn


class DenseNet(Generic):
    """Gates every convolution; a transition belongs to the stage it closes, and is a block of its own."""

    name = "densenet"
    fallback = False

    def matches(self, model: nn.Module) -> bool:
        from timm.models.densenet import DenseNet as TimmDenseNet

        return isinstance(model, TimmDenseNet)

    def stage(self, path: str) -> str:
        part = path.split(".")[1]  # every module sits in ``features``
        if part.startswith(("denseblock", "transition")):
            return "denseblock" + part[-1]
        return "final" if part == "norm5" else "stem"

    def block(self, path: str) -> str:
        parts = path.split(".")
        if parts[1].startswith("denseblock"):
            return ".".join(parts[:3])
        return ".".join(parts[:2]) if parts[1].startswith("transition") else self.stage(path)

    def stages(self, model: nn.Module) -> tuple[Stage, ...]:
        from timm.models.densenet import DenseNet as TimmDenseNet

        if not isinstance(model, TimmDenseNet) or is_overridden(model, TimmDenseNet):
            return ()
        parts = groupby(model.features.named_children(), key=lambda child: self.stage(f"features.{child[0]}"))
        return (
            *(Stage(name, chain(*(module for _, module in children))) for name, children in parts),
            Stage("head", model.forward_head),
        )


@hookimpl
def register_architectures(registrar: Registrar) -> None:
    registrar.architecture(DenseNet())
