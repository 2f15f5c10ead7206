"""csv: a folder a run inside the registry, with ``metrics.csv``, ``parameters.json`` and the pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from csv import writer
from pathlib import Path

from ..spec import Registrar, hookimpl
from . import RunInfo, TrackedRun, Tracker


class CsvRun(TrackedRun):
    """Appends one line a metric: step, name, value."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.id = folder.name

    def parameters(self, values: Mapping[str, object]) -> None:
        path = self.folder / "parameters.json"
        known = json.loads(path.read_text("utf-8")) if path.exists() else {}
        path.write_text(json.dumps({**known, **values}, indent=2, default=str), "utf-8")

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        with (self.folder / "metrics.csv").open("a", newline="", encoding="utf-8") as file:
            writer(file).writerows([step, name, value] for name, value in values.items())

    def picture(self, path: Path) -> None:
        shutil.copy(path, self.folder / path.name)

    def end(self, state: str) -> None:
        self.parameters({"state": state})


class CsvTracker(Tracker):
    """Plain files, for people who plot with their own tools."""

    name = "csv"
    summary = "plain files under tracking/ in the registry, or under --tracking-uri"

    def follow(self, run: RunInfo) -> TrackedRun:
        root = Path(run.uri) if run.uri else run.home / "tracking"
        return CsvRun(root / run.run)


@hookimpl
def register_trackers(registrar: Registrar) -> None:
    registrar.tracker(CsvTracker())
