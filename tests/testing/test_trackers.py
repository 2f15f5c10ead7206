"""Every built-in tracker passes the suite that strangers are given; the suite fails what breaks its contract."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from taps_registry.plugins.errors import PluginError
from taps_registry.plugins.trackers import RunInfo, TrackedRun
from taps_registry.plugins.trackers.csv import CsvRun, CsvTracker
from taps_registry.plugins.trackers.mlflow import MlflowRun, MlflowTracker
from taps_registry.plugins.trackers.none import NoTracker
from taps_registry.testing import (
    Recorded,
    TrackerTests,
)


class TestCsvTracker(TrackerTests):
    tracker = CsvTracker()

    def recorded(self, home: Path, run: TrackedRun) -> Recorded:
        assert isinstance(run, CsvRun)
        metrics: dict[str, dict[int, float]] = defaultdict(dict)
        if (run.folder / "metrics.csv").exists():
            with (run.folder / "metrics.csv").open(newline="") as file:
                for step, name, value in csv.reader(file):
                    metrics[name][int(step)] = float(value)
        path = run.folder / "parameters.json"
        parameters = json.loads(path.read_text("utf-8")) if path.exists() else {}
        pictures = frozenset(path.name for path in run.folder.glob("*.png"))
        return Recorded({name: str(value) for name, value in parameters.items()}, metrics, pictures)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
class TestMlflowTracker(TrackerTests):
    """All in one store: each takes seconds to make."""

    tracker = MlflowTracker()
    store = ""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _store(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.store = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"

    def uri(self, home: Path) -> str:
        return self.store

    def recorded(self, home: Path, run: TrackedRun) -> Recorded:
        assert isinstance(run, MlflowRun)
        data = run.client.get_run(run.id).data
        histories = {name: run.client.get_metric_history(run.id, name) for name in data.metrics}
        metrics = {name: {found.step: found.value for found in history} for name, history in histories.items()}
        pictures = frozenset(found.path for found in run.client.list_artifacts(run.id))
        return Recorded(data.params, metrics, pictures)


class TestNoTracker(TrackerTests):
    tracker = NoTracker()


def test_no_built_in_tracker_is_left_out(built_in: Callable[[str], set[str]]) -> None:
    assert {suite.tracker.name for suite in suites()} == built_in("tracker")


def suites() -> list[Any]:
    """The suites of this file that pytest collects."""
    return [found() for name, found in globals().items() if name.startswith("Test") and issubclass(found, TrackerTests)]


# A suite that nothing fails would show nothing


class LosesThings(CsvRun):
    def parameters(self, values: Mapping[str, object]) -> None:
        (self.folder / "parameters.json").write_text(json.dumps({**values}, default=str))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        super().metrics(values, 1)

    def picture(self, path: Path) -> None:
        (self.folder / "links").mkdir()
        (self.folder / "links" / path.name).symlink_to(path)

    def end(self, state: str) -> None:
        if state == "failed":
            raise AssertionError(f"no such state: {state}")


class LosingTracker(CsvTracker):
    """Begins another run where one was to be resumed."""

    def follow(self, run: RunInfo) -> TrackedRun:
        return LosesThings(run.home / f"{run.run}{'-again' if run.resumed else ''}")


@pytest.mark.parametrize(
    ("test", "match"),
    [
        ("test_parameters_are_kept_and_may_be_said_again", "parameters are lost or changed"),
        ("test_metrics_are_kept_by_step", r"metrics\(\) was told"),
        ("test_a_picture_outlives_its_file", r"picture\(\) did not keep"),
        ("test_a_run_ends_in_any_of_the_states", "no such state: failed"),
        ("test_a_run_is_taken_up_again_by_its_id", "began another run"),
    ],
)
def test_a_broken_tracker_fails(tmp_path: Path, test: str, match: str) -> None:
    suite = TestCsvTracker()
    suite.tracker = LosingTracker()  # type: ignore[misc]
    with pytest.raises((AssertionError, PluginError), match=match):
        getattr(suite, test)(tmp_path)
