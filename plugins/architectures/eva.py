"""EVA, EVA-02, DINOv3 and others with rotary positions (timm's ``Eva``): the layers of a vision transformer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..spec import Registrar, hookimpl
from . import Stage
from .beit import Beit


class Eva(Beit):
    """Gates what is gated in BEiT; where q, k and v are linears of their own, those."""

    name = "eva"

    def timm_class(self) -> Any:
        from timm.models.eva import Eva as TimmEva

        return TimmEva

    def parts(self, model: Any) -> Iterator[Stage]:
        """None: the blocks take the rotary angles beside the tokens, so that they are no chain of one tensor."""
        return iter(())


@hookimpl
def register_architectures(registrar: Registrar) -> None:
    registrar.architecture(Eva())
