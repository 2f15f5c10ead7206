"""What a user is told while a task is added. The command line draws it; the library is silent by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """Where training stands. ``open_layers`` of ``layers`` are stored if it stopped now."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float
    open_layers: int
    layers: int


@dataclass(frozen=True)
class EpochResult:
    """One finished epoch, counted from 1.

    Attributes:
        loss: mean over the epoch's training batches, penalty excluded, in nats.
        penalty: the penalty at its end.
        accuracy: of the training batches, a share of 1.
        val_loss: on the validation images.
        val_accuracy: on the validation images.
        open_layers: that would be stored.
        layers: that have a gate.
        params: values that would be stored, head included.
        share_of_base: of weights and norms among them.
        bytes: that would be stored.
        best: whether this epoch is the best so far.
        scores: of the gates, by layer, to six decimals; empty for a method without scores.
    """

    epoch: int
    epochs: int
    loss: float
    penalty: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    open_layers: int
    layers: int
    params: int
    share_of_base: float
    bytes: int
    best: bool
    scores: Mapping[str, float]


class Progress:
    """Receives what happens; the base class keeps quiet."""

    def checking(self, done: int, total: int) -> None:
        """Images are being decoded and checked."""

    def step(self, step: Step) -> None:
        """A training step is done."""

    def epoch(self, result: EpochResult) -> None:
        """An epoch is done."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def close(self) -> None:
        """Nothing more will come."""
