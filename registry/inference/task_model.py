"""A task ready to use: images in, classes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..context import Context
from ..data.pixels import read_rgb
from ..data.transforms import batch, evaluation_transform
from ..records import InputConfig, Prediction, Task
from ..training.device import find_device
from .compose import Composed, compose_task

BATCH = 32


@dataclass(frozen=True)
class TaskModel:
    """A composed model with what it needs around it.

    Attributes:
        version: of its artifact.
        model: timm's, in eval mode; ``(B, C, H, W)`` float32 to logits ``(B, classes)``.
        classes: in the order of the logits.
    """

    task: str
    version: int
    model: nn.Module
    classes: tuple[str, ...]
    input: InputConfig

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def predict(self, images: Sequence[Path], top: int = 1) -> tuple[Prediction, ...]:
        """The ``top`` most likely classes of each image file.

        Raises DataError, naming the first file that is not an image.
        """
        transform = evaluation_transform(self.input)
        predictions: list[Prediction] = []
        for start in range(0, len(images), BATCH):
            paths = images[start : start + BATCH]
            pixels = batch([transform(read_rgb(path, str(path))) for path in paths]).to(self.device)
            probabilities = self.model(pixels).softmax(dim=1).cpu()
            predictions.extend(self._prediction(path, row, top) for path, row in zip(paths, probabilities, strict=True))
        return tuple(predictions)

    def _prediction(self, path: Path, row: Tensor, top: int) -> Prediction:
        shares, order = row.sort(descending=True, stable=True)  # equal ones in the order of the classes
        pairs = zip(order[:top].tolist(), shares[:top].tolist(), strict=True)
        return Prediction(str(path), tuple((self.classes[index], share) for index, share in pairs))


def load(context: Context, name: str, device: str) -> TaskModel:
    """A task on a device. Raises SettingsError for a device that is not there, and what ``compose_task`` raises."""
    record, _, composed = compose_task(context, name)
    return task_model(record, composed, find_device(device))


def task_model(record: Task, composed: Composed, device: torch.device) -> TaskModel:
    """Put a composed model on a device."""
    header = composed.header
    return TaskModel(record.name, record.version or 0, composed.model.to(device), header.classes, header.config())
