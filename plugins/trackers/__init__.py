"""The contract of a tracker: where the parameters, metrics and pictures of a run go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..guard import Guarded

__all__ = ["RunInfo", "TrackedRun", "Tracker"]


@dataclass(frozen=True)
class RunInfo:
    """Which run to follow.

    Attributes:
        run: our own id of the run.
        base: the base's name; trackers group runs by it.
        task: the task's name.
        home: the registry's folder, for trackers that keep files.
        uri: what ``--tracking-uri`` said; empty for the tracker's own place inside ``home``.
        resumed: the tracker's id of this run if it was followed before it was interrupted.
    """

    run: str
    base: str
    task: str
    home: Path
    uri: str = ""
    resumed: str | None = None


class TrackedRun(Guarded, ABC):
    """A run being followed. Any method may raise: the caller says so once and trains on."""

    kind: ClassVar[str] = "tracker's run"

    id: str

    @abstractmethod
    def parameters(self, values: Mapping[str, object]) -> None:
        """Record settings and facts that do not change; recording a name again replaces it where possible."""

    @abstractmethod
    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers at a step (the epoch, counted from 1)."""

    @abstractmethod
    def picture(self, path: Path) -> None:
        """Keep a PNG file under its own name."""

    @abstractmethod
    def end(self, state: str) -> None:
        """Close the run as ``finished``, ``failed`` or ``interrupted``."""


class Tracker(Guarded, ABC):
    """Opens runs.

    Attributes:
        name: what ``add-task --tracker`` calls it.
        summary: one line for ``taps-registry plugins`` and the docs.
        keeps_pictures: False spares drawing them.
    """

    kind: ClassVar[str] = "tracker"
    returns: ClassVar[dict[str, str]] = {"follow": ".trackers:TrackedRun"}

    name: ClassVar[str]
    summary: ClassVar[str]
    keeps_pictures: ClassVar[bool] = True

    @abstractmethod
    def follow(self, run: RunInfo) -> TrackedRun:
        """Start to follow a run, or take it up again where ``run.resumed`` names one."""
