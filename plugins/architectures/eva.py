"""EVA, EVA-02, DINOv3 and others with rotary positions (timm's ``Eva``): the layers of a vision transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..spec import Registrar, hookimpl
from . import Stage
from .beit import Beit

if TYPE_CHECKING:
    from torch import nn


class Eva(Beit):
    """Gates what is gated in BEiT; where q, k and v are linears of their own, those."""

    name = "eva"

    def matches(self, model: nn.Module) -> bool:
        from timm.models.eva import Eva as TimmEva

        return isinstance(model, TimmEva)

    def stages(self, model: nn.Module) -> tuple[Stage, ...]:
        """None: the blocks take the rotary angles beside the tokens, so that they are no chain of one tensor."""
        return ()


@hookimpl
def register_architectures(registrar: Registrar) -> None:
    registrar.architecture(Eva())
