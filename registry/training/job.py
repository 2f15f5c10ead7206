"""What training is given, and what it ends with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

from ...plugins.architectures import Partition
from ...plugins.architectures.pieces import Pieces
from ...plugins.encodings import Encoding
from ...plugins.methods import Delta, Method, MethodSettings
from ..data.splits import TaskData
from ..models.measure import roles
from ..models.prices import Prices
from ..records import InputConfig, TaskSet
from .progress import EpochResult
from .settings import TaskSettings


@dataclass(frozen=True)
class Job:
    """All that training needs; it touches neither catalog nor store.

    Attributes:
        settings: of the run.
        model: with the base's weights and a fresh head, on the CPU.
        partition: of the model.
        method: that adapts it.
        method_settings: what it is told.
        encoding: that the result will be stored in, for its size.
        data: images.
        input: what they are turned into.
        backbone_params: what shares are shares of.
        folder: of the run, for checkpoints.
        set: that the task is in, for a method whose tasks have tensors in common.
    """

    settings: TaskSettings
    model: nn.Module
    partition: Partition
    method: Method
    method_settings: MethodSettings
    encoding: Encoding
    data: TaskData
    input: InputConfig
    backbone_params: int
    folder: Path
    set: TaskSet | None = None

    @cached_property
    def pieces(self) -> Pieces:
        """The model's tensors, and rows of them."""
        return Pieces(self.model.state_dict())

    @cached_property
    def prices(self) -> Prices:
        """What storing each of them takes."""
        return Prices(self.model.state_dict(), roles(self.partition), self.encoding)


@dataclass(frozen=True)
class Best:
    """The best epoch so far, counted from 1, and the file in the run's folder that holds its delta."""

    epoch: int
    val_accuracy: float
    val_loss: float
    params: int
    settled: bool
    file: str

    def rank(self) -> tuple[bool, float, int, int]:
        """Settled gates first, then accuracy on validation, then fewer parameters, then the later epoch."""
        return (self.settled, self.val_accuracy, -self.params, self.epoch)


@dataclass(frozen=True)
class Outcome:
    """What training ended with."""

    best: Best
    delta: Delta
    history: tuple[EpochResult, ...]
