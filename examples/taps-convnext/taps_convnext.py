"""ConvNeXt and ConvNeXt V2 (timm's ``ConvNeXt``): stem, ``stages.0`` to ``stages.3``, head.

Liu et al., CVPR 2022, arXiv 2201.03545; Woo et al., CVPR 2023, arXiv 2301.00808.
"""

from __future__ import annotations

from timm.models.convnext import ConvNeXt as TimmConvNeXt
from torch import nn

from taps_registry.plugins import Generic, Registrar, Stage, hookimpl


class ConvNeXt(Generic):
    """Gates the patch embedding, each block's depthwise convolution and MLP, and the downsampling between stages.

    Layer scales stay those of the base.
    """

    name = "convnext"
    fallback = False
    learning_rate = 5e-4

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, TimmConvNeXt)

    def stage(self, path: str) -> str:
        parts = path.split(".")
        return ".".join(parts[:2]) if parts[0] == "stages" else parts[0]

    def block(self, path: str) -> str:
        """A downsampling is a block of its own: ``stages.1.downsample`` beside ``stages.1.blocks.0``."""
        parts = path.split(".")
        if parts[0] != "stages":
            return parts[0]
        return ".".join(parts[: 4 if parts[2] == "blocks" else 3])

    def stages(self, model: nn.Module) -> tuple[Stage, ...]:
        """The lines of ``forward_features``; nothing for a subclass that has others."""
        if not isinstance(model, TimmConvNeXt) or type(model).forward_features is not TimmConvNeXt.forward_features:
            return ()
        return (
            Stage("stem", model.stem),
            *(Stage(f"stages.{index}", stage) for index, stage in enumerate(model.stages)),
            Stage("norm_pre", model.norm_pre),
            Stage("head", model.forward_head),
        )


@hookimpl
def register_architectures(registrar: Registrar) -> None:
    registrar.architecture(ConvNeXt())
