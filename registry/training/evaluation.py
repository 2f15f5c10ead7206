"""Accuracy and loss of a model on a set of images."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..data.workers import deaths_explained
from .allocator import kept_memory


@dataclass(frozen=True)
class Measured:
    """``accuracy`` is a share of 1, ``loss`` the mean cross-entropy in nats."""

    accuracy: float
    loss: float
    images: int


@deaths_explained()
@kept_memory()
@torch.inference_mode()
def measure(model: nn.Module, loader: Any, accelerator: Any = None) -> Measured:
    """Run the model in eval mode over all batches of all processes.

    Args:
        model: ``(B, C, H, W)`` to logits ``(B, classes)``.
        loader: batches of images and labels.
        accelerator: of a run in training, which has prepared model and loader: its precision is used, and what all of
            its processes found counts. None for this process alone, in the model's own precision.
    """
    model.eval()
    device = next(model.parameters()).device
    several = accelerator is not None and accelerator.num_processes > 1
    right, loss, images = 0, 0.0, 0
    for pixels, labels in loader:
        pixels, labels = pixels.to(device), labels.to(device)
        with accelerator.autocast() if accelerator else nullcontext():
            logits = model(pixels).float()
        losses = functional.cross_entropy(logits, labels, reduction="none")
        hits = logits.argmax(dim=1) == labels
        if several:
            hits, losses = accelerator.gather_for_metrics((hits, losses))
        right += int(hits.sum())
        loss += float(losses.cpu().double().sum())  # Apple's GPUs have no float64
        images += len(hits)
    return Measured(right / images, loss / images, images)
