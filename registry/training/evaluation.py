"""Accuracy and loss of a model on a set of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .allocator import kept_memory


@dataclass(frozen=True)
class Measured:
    """``accuracy`` is a share of 1, ``loss`` the mean cross-entropy in nats."""

    accuracy: float
    loss: float
    images: int


@kept_memory()
@torch.inference_mode()
def measure(model: nn.Module, loader: Any, accelerator: Any) -> Measured:
    """Run the model in eval mode over all batches of all processes.

    Args:
        model: ``(B, C, H, W)`` to logits ``(B, classes)``.
        loader: prepared by ``accelerator``: batches of images and labels on its device.
        accelerator: of the processes that take part.
    """
    model.eval()
    right, loss, images = 0, 0.0, 0
    for pixels, labels in loader:
        with accelerator.autocast():
            logits = model(pixels).float()
        losses = functional.cross_entropy(logits, labels, reduction="none")
        hits = logits.argmax(dim=1) == labels
        hits, losses = accelerator.gather_for_metrics((hits, losses))
        right += int(hits.sum())
        loss += float(losses.double().sum())
        images += len(hits)
    return Measured(right / images, loss / images, images)
