"""Vision transformers (timm's ``VisionTransformer``, DeiT): patch embedding, then one stage a block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..spec import Registrar, hookimpl
from . import Layer, Stage
from .chain import active, chain, is_overridden
from .generic import Generic
from .modules import is_fused_qkv

if TYPE_CHECKING:
    from torch import nn


class VisionTransformer(Generic):
    """Gates the patch embedding and, in each block, queries, keys, values, the projection and both MLP layers.

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
        if parts[0] in ("patch_embed", "norm_pre"):
            return "embed"
        return "final" if parts[0] == "norm" else "head"

    def block(self, path: str) -> str:
        return self.stage(path) if path.startswith("blocks.") else super().block(path)

    def layers_of(self, path: str, module: nn.Module) -> Iterator[Layer]:
        if is_fused_qkv(module, path):
            yield from self.fused_thirds(path, module)
        else:
            yield from super().layers_of(path, module)

    def stages(self, model: nn.Module) -> tuple[Stage, ...]:
        from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

        if not isinstance(model, TimmVisionTransformer) or is_overridden(model, TimmVisionTransformer):
            return ()
        return active(
            Stage("embed", chain(model.patch_embed, model._pos_embed, model.patch_drop, model.norm_pre)),
            *(Stage(f"blocks.{index}", block) for index, block in enumerate(model.blocks)),
            Stage("final", model.norm),
            Stage("head", model.forward_head),
        )


@hookimpl
def register_architectures(registrar: Registrar) -> None:
    registrar.architecture(VisionTransformer())
