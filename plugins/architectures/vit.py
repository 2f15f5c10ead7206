"""Vision transformers (timm's ``VisionTransformer``): patch embedding, then one stage a block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..spec import Registrar, hookimpl
from .generic import Generic

if TYPE_CHECKING:
    from torch import nn


class VisionTransformer(Generic):
    """Gates the patch embedding and, in each block, the fused qkv, the projection and both MLP layers.

    Class tokens, register tokens and position embeddings stay those of the base.
    """

    name = "vit"
    fallback = False
    learning_rate = 2e-4  # transformers diverge at the rate that suits convolutions

    def matches(self, model: nn.Module) -> bool:
        from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

        return isinstance(model, TimmVisionTransformer)

    def stage(self, path: str) -> str:
        parts = path.split(".")
        if parts[0] == "blocks":
            return ".".join(parts[:2])
        return "embed" if parts[0] in ("patch_embed", "norm_pre") else "final"


@hookimpl
def register_architectures(registrar: Registrar) -> None:
    registrar.architecture(VisionTransformer())
