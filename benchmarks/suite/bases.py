"""The suite's backbones: a ResNet, a DenseNet and a ViT, trained on rendered Latin letters and digits.

Small ones, so that a run takes seconds, yet with norms well below 1 % of the parameters, as in the models that people
use. Each becomes a file of weights that ``taps-registry add-base --weights`` takes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from taps_registry import Registry

from .tasks import Size, latin

SEED = 0
BATCH = 64


@dataclass(frozen=True)
class Backbone:
    """A backbone of the suite.

    Attributes:
        name: of the base in a registry, and of its file.
        model: timm's name.
        arguments: of ``timm.create_model``, beside the number of classes.
        lr: learning rate of the training from scratch.
        epochs: of it.
        gradually: whether it first sees the letters' strokes alone, and their colours come in by and by. A ViT that
            begins with colours learns nothing for long.
    """

    name: str
    model: str
    arguments: Mapping[str, Any]
    lr: float
    epochs: int
    gradually: bool = False

    def complete(self, size: Size) -> dict[str, Any]:
        """All arguments: images are taken as they are, without the crop that photographs get."""
        made = {**self.arguments, "num_classes": len(latin().classes)}
        made["pretrained_cfg_overlay"] = {"crop_pct": 1.0}
        return made | ({"img_size": size.pixels} if "patch_size" in made else {})


SMALL = (  # as in the full-size ones, the largest layer of the ResNet has about a tenth of its parameters
    Backbone("resnet34", "resnet34", {"channels": [16, 32, 64, 128]}, 2e-3, 12),
    Backbone("densenet", "densenet121", {"growth_rate": 40, "block_config": [1, 2, 4, 6]}, 2e-3, 7),
    Backbone(
        "vit", "vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4}, 1e-3, 36, True
    ),
)
LARGE = (
    Backbone("resnet34", "resnet34", {}, 2e-3, 12),
    Backbone("densenet", "densenet121", {}, 2e-3, 12),
    Backbone("vit", "vit_small_patch16_224", {"patch_size": 8}, 5e-4, 30, True),
)


def backbones(size: str) -> dict[str, Backbone]:
    """The backbones of a key of ``tasks.SIZES``, by name."""
    return {backbone.name: backbone for backbone in (LARGE if size == "gpu" else SMALL)}


def pretrain(backbone: Backbone, file: Path, size: Size, device: str = "cpu") -> float:
    """Train a backbone from scratch and write its weights, unless they are there.

    Returns:
        Its accuracy on letters it has not seen, 0..1; NaN if the file was there.
    """
    if file.exists():
        return math.nan
    torch.manual_seed(SEED)
    model: nn.Module = timm.create_model(backbone.model, **backbone.complete(size)).to(device)
    pixels, labels = letters(size, model, "train")
    steps = backbone.epochs * (len(labels) // BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), lr=backbone.lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, backbone.lr, total_steps=steps, pct_start=0.15)
    model.train()
    for step in range(steps):
        if step % (len(labels) // BATCH) == 0:
            order = torch.randperm(len(labels))
        chosen = order[(step % (len(labels) // BATCH)) * BATCH :][:BATCH]
        colours = min(1.0, max(0.0, (step / steps - 0.2) / 0.3)) if backbone.gradually else 1.0
        seen = coloured(pixels[chosen].to(device), colours)
        loss = functional.cross_entropy(model(seen), labels[chosen].to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    reached = accuracy(model.eval(), *letters(size, model, "val"))
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{time.time_ns()}")
    save_file({name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}, draft)
    draft.rename(file)
    return reached


def coloured(pixels: Tensor, share: float) -> Tensor:
    """Images ``(N, 3, side, side)`` with a share of their colours; at 0 how far each pixel is from the border's."""
    if share == 1:
        return pixels
    rim = torch.cat([pixels[:, :, 0], pixels[:, :, -1], pixels[..., 0], pixels[..., -1]], dim=2)
    paper = rim.median(dim=2).values[..., None, None]
    return share * pixels + (1 - share) * (pixels - paper).abs().mean(dim=1, keepdim=True)


def letters(size: Size, model: nn.Module, split: str) -> tuple[Tensor, Tensor]:
    """What the backbones are trained on, normalised as the model wants it: ``(N, 3, side, side)``, and labels."""
    source = latin()
    each = size.letters if split == "train" else max(1, size.letters // 10)
    drawn = Size(size.pixels, each * len(source.classes), each * len(source.classes), 0, 0)
    pictures = list(source.pictures(split, drawn))
    config = timm.data.resolve_data_config({}, model=model)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    pixels = torch.from_numpy(numpy.stack([picture.pixels for picture in pictures])).permute(0, 3, 1, 2)
    labels = torch.tensor([source.classes.index(picture.label) for picture in pictures])
    return (pixels.float() / 255 - mean) / std, labels


@torch.no_grad()
def accuracy(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """The share of images that a model in eval mode gets right."""
    device = next(model.parameters()).device
    right = [(model(some.to(device)).argmax(1).cpu() == true).sum() for some, true in _batches(pixels, labels)]
    return float(torch.stack(right).sum()) / len(labels)


def _batches(pixels: Tensor, labels: Tensor) -> zip[tuple[Tensor, Tensor]]:
    return zip(pixels.split(256), labels.split(256), strict=True)


def add(registry: Registry, backbone: Backbone, file: Path, size: Size) -> None:
    """Put a pre-trained backbone into a registry, unless it is there."""
    if backbone.name not in {base.name for base in registry.bases()}:
        registry.add_base(
            backbone.name,
            backbone.model,
            weights=file,
            arguments=backbone.complete(size),
            input_size=size.pixels,
        )
