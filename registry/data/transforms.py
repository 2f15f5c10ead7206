"""Images to tensors, by timm's transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import SettingsError

if TYPE_CHECKING:
    from torch import Tensor

    from ..records import InputConfig

Transform = Callable[[Any], "Tensor"]

# What timm's training transform is told beside the input configuration.
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "none": {"no_aug": True},
    "light": {"scale": (0.7, 1.0), "ratio": (0.9, 1.1), "hflip": 0.0, "color_jitter": 0.0},
    "standard": {"scale": (0.35, 1.0), "hflip": 0.5, "color_jitter": 0.4},
}


def evaluation_transform(config: InputConfig) -> Transform:
    """Resize, centre crop, normalise: a PIL image to ``(C, H, W)`` float32."""
    return _transform(config, crop_pct=config.crop_pct, crop_mode=config.crop_mode)


def training_transform(config: InputConfig, augment: str) -> Transform:
    """The same with random crops and, as ``augment`` says, flips and colours.

    Raises SettingsError for an unknown one.
    """
    if augment not in AUGMENTATIONS:
        raise SettingsError(f"--augment must be one of {', '.join(AUGMENTATIONS)}, got {augment!r}.")
    options = dict(AUGMENTATIONS[augment])
    if options.pop("no_aug", False):
        return evaluation_transform(config)
    return _transform(config, is_training=True, **options)


def batch(images: Sequence[Tensor]) -> Tensor:
    """Images as ``(B, C, H, W)`` with channels last in memory: convolutions keep to it, and are faster so."""
    import torch

    return torch.stack(list(images)).contiguous(memory_format=torch.channels_last)


def _transform(config: InputConfig, **options: Any) -> Transform:
    from timm.data import create_transform

    transform: Transform = create_transform(
        input_size=config.size, mean=config.mean, std=config.std, interpolation=config.interpolation, **options
    )
    return transform
