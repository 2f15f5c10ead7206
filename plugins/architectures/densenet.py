"""DenseNet: stem, dense blocks with the transition that closes each, final norm."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from ..spec import Registrar, hookimpl
from . import Stage
from .family import Family, chain


class DenseNet(Family):
    """Gates every convolution; a transition belongs to the stage it closes, and is a block of its own."""

    name = "densenet"

    def timm_class(self) -> Any:
        from timm.models.densenet import DenseNet as TimmDenseNet

        return TimmDenseNet

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

    def parts(self, model: Any) -> Iterator[Stage]:
        parts = groupby(model.features.named_children(), key=lambda child: self.stage(f"features.{child[0]}"))
        yield from (Stage(name, chain(*(module for _, module in children))) for name, children in parts)
        yield Stage("head", model.forward_head)


@hookimpl
def register_architectures(registrar: Registrar) -> None:
    registrar.architecture(DenseNet())
