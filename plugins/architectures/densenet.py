"""DenseNet: stem, dense blocks with the transition that closes each, final norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..spec import Registrar, hookimpl
from .generic import Generic

if TYPE_CHECKING:
    from torch import nn


class DenseNet(Generic):
    """Gates every convolution; a transition belongs to the block it closes."""

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


@hookimpl
def register_architectures(registrar: Registrar) -> None:
    registrar.architecture(DenseNet())
