"""BEiT (timm's ``Beit``): a vision transformer whose q and v have biases, and whose k has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from ..spec import Registrar, hookimpl
from . import Layer, Stage
from .modules import is_fused_qkv
from .vit import VisionTransformer

if TYPE_CHECKING:
    from torch import Tensor, nn


class Beit(VisionTransformer):
    """Gates what is gated in a vision transformer; relative position tables and layer scales stay those of the base."""

    name = "beit"

    def timm_class(self) -> Any:
        from timm.models.beit import Beit as TimmBeit

        return TimmBeit

    def layers_of(self, path: str, module: nn.Module) -> Iterator[Layer]:
        """The attention owns the biases of its child ``qkv``."""
        fused, inside = getattr(module, "qkv", None), f"{path}.qkv"
        if getattr(module, "q_bias", None) is not None and is_fused_qkv(fused, inside):
            yield from self.fused_thirds(inside, fused, {part: f"{path}.{part}_bias" for part in "qv"})
        else:
            yield from super().layers_of(path, module)

    def parts(self, model: Any) -> Iterator[Stage]:
        yield Stage("embed", partial(_embed, model))
        yield from (Stage(f"blocks.{index}", _with_positions(model, block)) for index, block in enumerate(model.blocks))
        yield Stage("final", model.norm)
        yield Stage("head", model.forward_head)


def _embed(model: Any, images: Tensor) -> Tensor:
    """The lines before the blocks in ``Beit.forward_features``: images ``(B, C, H, W)`` to tokens ``(B, N, D)``."""
    import torch

    tokens: Tensor = model.patch_embed(images)
    tokens = torch.cat((model.cls_token.expand(len(tokens), -1, -1), tokens), dim=1)
    if model.pos_embed is not None:
        tokens = tokens + model.pos_embed
    dropped: Tensor = model.pos_drop(tokens)
    return dropped


def _with_positions(model: Any, block: nn.Module) -> Callable[[Tensor], Tensor]:
    """A block with the relative position bias that all blocks share, if the model has one."""
    bias = model.rel_pos_bias
    return lambda tokens: block(tokens, shared_rel_pos_bias=None if bias is None else bias())


@hookimpl
def register_architectures(registrar: Registrar) -> None:
    registrar.architecture(Beit())
