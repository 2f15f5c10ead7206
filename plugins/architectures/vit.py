"""Vision transformers (timm's ``VisionTransformer``, DeiT): patch embedding, then one stage a block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..spec import Registrar, hookimpl
from . import Layer, Stage
from .family import Family, chain
from .modules import is_fused_qkv

if TYPE_CHECKING:
    from torch import nn


class VisionTransformer(Family):
    """Gates the patch embedding and, in each block, queries, keys, values, the projection and both MLP layers.

    Class tokens, register tokens and position embeddings stay those of the base.
    """

    name = "vit"
    learning_rate = 2e-4  # transformers diverge at the rate that suits convolutions

    def timm_class(self) -> Any:
        from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

        return TimmVisionTransformer

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

    def parts(self, model: Any) -> Iterator[Stage]:
        yield Stage("embed", chain(model.patch_embed, model._pos_embed, model.patch_drop, model.norm_pre))
        yield from (Stage(f"blocks.{index}", block) for index, block in enumerate(model.blocks))
        yield Stage("final", model.norm)
        yield Stage("head", model.forward_head)


@hookimpl
def register_architectures(registrar: Registrar) -> None:
    registrar.architecture(VisionTransformer())
