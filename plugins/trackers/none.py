"""No tracker: the catalog keeps what it needs, nothing else is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..spec import Registrar, hookimpl
from . import RunInfo, TrackedRun, Tracker


class Unfollowed(TrackedRun):
    """A run that is not tracked."""

    id = ""

    def parameters(self, values: Mapping[str, object]) -> None:
        pass

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        pass

    def picture(self, path: Path) -> None:
        pass

    def end(self, state: str) -> None:
        pass


class NoTracker(Tracker):
    """For machines without MLflow, and for tests."""

    name = "none"
    summary = "disables tracking"
    keeps_pictures = False

    def follow(self, run: RunInfo) -> TrackedRun:
        return Unfollowed()


@hookimpl
def register_trackers(registrar: Registrar) -> None:
    registrar.tracker(NoTracker())
