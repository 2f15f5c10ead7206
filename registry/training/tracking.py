"""Follows a run with a tracker, and survives the tracker."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ...plugins.guard import described
from ...plugins.methods import LayerState
from ...plugins.trackers import RunInfo, TrackedRun, Tracker
from ..errors import PluginError, TrainingError, first_line
from ..secrets import without_secrets
from .progress import EpochResult, Progress


class Following:
    """A run being followed. After the tracker's first failure the user is told, and it is left alone.

    Args:
        tracker: that follows.
        run: which run.
        progress: who is told.

    Raises:
        TrainingError: if the tracker does not even begin: nothing is lost yet, and the user may prefer another.
    """

    def __init__(self, tracker: Tracker, run: RunInfo, progress: Progress) -> None:
        self.progress = progress
        self.uri = run.uri
        self.tracker = tracker.name
        self.draws = tracker.keeps_pictures
        try:
            self._run: TrackedRun | None = tracker.follow(run)
            self.id = self._run.id
        except Exception as error:  # a stranger's code and somebody's server: anything can come
            raise TrainingError(
                f"{described(tracker)} could not start tracking the run: {self._said(error)}. "
                "Fix it, or train with --tracker none."
            ) from error

    def parameters(self, values: Mapping[str, object]) -> None:
        """Record settings and facts, nested ones as JSON."""
        flat = {name: json.dumps(v) if isinstance(v, dict | list | tuple) else v for name, v in values.items()}
        self._try(lambda run: run.parameters(flat))

    def epoch(self, result: EpochResult) -> None:
        """Record an epoch's metrics."""
        self._try(
            lambda run: run.metrics(
                {
                    "train/loss": result.loss,
                    "train/penalty": result.penalty,
                    "train/accuracy": result.accuracy,
                    "val/loss": result.val_loss,
                    "val/accuracy": result.val_accuracy,
                    "storage/open_layers": result.open_layers,
                    "storage/params": result.params,
                    "storage/share_of_base": result.share_of_base,
                    "storage/bytes": result.bytes,
                },
                result.epoch,
            )
        )

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record other numbers."""
        self._try(lambda run: run.metrics(values, step))

    def scores(
        self, layers: Sequence[LayerState], threshold: float, title: str, shares: Mapping[str, float] | None = None
    ) -> None:
        """Keep a picture of the gates' scores, or without scores of how much of each layer is stored.

        Nothing is drawn if there is neither a score nor a stored layer to show.

        Args:
            layers: in forward order.
            threshold: of the scores.
            title: of the picture.
            shares: of each layer's bytes that are stored, by name.
        """
        scored = any(layer.score is not None for layer in layers)
        stored = any(layer.open for layer in layers) and shares
        if not self.draws or not (scored or stored):
            return

        def draw(run: TrackedRun) -> None:
            from .pictures import scores_picture, shares_picture

            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / ("scores.png" if scored else "layers.png")
                if scored:
                    scores_picture(path, layers, threshold, title)
                else:
                    shares_picture(path, layers, shares or {}, title)
                run.picture(path)

        self._try(draw)

    def end(self, state: str) -> None:
        """Close the run as ``finished``, ``failed`` or ``interrupted``."""
        self._try(lambda run: run.end(state))

    def _try(self, action: Callable[[TrackedRun], None]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # noqa: BLE001  (no tracker's failure may lose a trained task)
            self._run = None
            kind = type(error.__cause__ if isinstance(error, PluginError) and error.__cause__ else error).__name__
            said = f"{kind}: {self._said(error)}"
            self.progress.note(f"The tracker {self.tracker!r} failed ({said}); training continues without it.")

    def _said(self, error: Exception) -> str:
        """In one line, without passwords."""
        reason = error.__cause__ if isinstance(error, PluginError) and error.__cause__ else error
        return without_secrets(first_line(reason).rstrip("."), self.uri)
