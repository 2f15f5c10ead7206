"""Trackers: a real MLflow store, plain files, and trackers that fail."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from taps_registry import Registry
from taps_registry.plugins.methods import LayerState
from taps_registry.plugins.trackers import RunInfo, TrackedRun, Tracker
from taps_registry.plugins.trackers.mlflow import store_uri
from taps_registry.registry.errors import Interrupted, TrainingError
from taps_registry.registry.records import Task
from taps_registry.registry.training.progress import EpochResult, Progress
from taps_registry.registry.training.tracking import Following

Add = Callable[..., Task]
mlflow_warns = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)


class Notes(Progress):
    def __init__(self, stop: int = 0) -> None:
        self.notes: list[str] = []
        self.stop = stop

    def note(self, text: str) -> None:
        self.notes.append(text)

    def epoch(self, result: EpochResult) -> None:
        if result.epoch == self.stop:
            raise KeyboardInterrupt


@mlflow_warns
def test_mlflow_has_parameters_metrics_fingerprint_digest_picture_and_budget(registry: Registry, add: Add) -> None:
    from mlflow.tracking import MlflowClient

    registry.set_budget(base="base", max_bytes=10**9)
    task = add("task", tracker="mlflow", epochs=2)
    run = registry.runs("task")[0]
    client = MlflowClient(tracking_uri=store_uri(registry.home))
    followed = client.get_run(run.tracker_run)
    assert followed.info.status == "FINISHED"
    params = followed.data.params
    assert params["method"] == "taps"
    assert params["dataset_fingerprint"] == run.fingerprint
    assert params["artifact_digest"] == task.digest
    assert params["base_digest"] == registry.base("base").digest
    metrics = followed.data.metrics
    assert metrics["artifact/test/accuracy"] == task.metrics["test/accuracy"]
    assert metrics["artifact/bytes"] == task.bytes
    assert metrics["budget/base_used_bytes"] == task.bytes
    assert metrics["budget/base_max_bytes"] == 10**9
    for name in ("train/loss", "val/accuracy", "storage/open_layers", "storage/share_of_base", "storage/bytes"):
        assert [point.step for point in client.get_metric_history(run.tracker_run, name)] == [1, 2]
    assert [found.path for found in client.list_artifacts(run.tracker_run)] == ["scores.png"]
    (picture,) = (registry.home / "mlflow" / "artifacts").rglob("scores.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


@mlflow_warns
def test_a_resumed_run_goes_on_in_the_same_mlflow_run(registry: Registry, add: Add) -> None:
    from mlflow.tracking import MlflowClient

    with pytest.raises(Interrupted):
        add("task", tracker="mlflow", epochs=3, progress=Notes(stop=1))
    client = MlflowClient(tracking_uri=store_uri(registry.home))
    first = registry.runs("task")[0].tracker_run
    assert client.get_run(first).info.status == "KILLED"
    registry.resume_task("task", sparsity=2.0)
    assert registry.runs("task")[0].tracker_run == first
    followed = client.get_run(first)
    assert followed.info.status == "FINISHED"
    assert followed.data.tags["resumed.sparsity"] == "2.0"
    experiment = client.get_experiment(followed.info.experiment_id)
    assert experiment.name == "taps-registry/base"
    assert len(client.search_runs([experiment.experiment_id])) == 1


@mlflow_warns
def test_a_tracking_uri_of_ones_own_is_used(registry: Registry, add: Add, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    add("task", tracker="mlflow", tracking_uri=uri)
    assert (tmp_path / "elsewhere.db").exists()
    assert not (registry.home / "mlflow" / "mlflow.db").exists()


def test_csv_writes_plain_files(registry: Registry, add: Add) -> None:
    task = add("task", tracker="csv", epochs=2)
    folder = registry.home / "tracking" / registry.runs("task")[0].id
    with (folder / "metrics.csv").open() as file:
        rows = [(int(step), name, float(value)) for step, name, value in csv.reader(file)]
    assert [step for step, name, _ in rows if name == "val/accuracy"][:2] == [1, 2]
    parameters = json.loads((folder / "parameters.json").read_text())
    assert parameters["artifact_digest"] == task.digest
    assert parameters["state"] == "finished"
    assert (folder / "scores.png").read_bytes().startswith(b"\x89PNG")


class Keeping(TrackedRun):
    """Keeps pictures."""

    id = "keeping"

    def __init__(self) -> None:
        self.pictures: dict[str, bytes] = {}

    def parameters(self, values: Mapping[str, object]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...

    def picture(self, path: Path) -> None:
        self.pictures[path.name] = path.read_bytes()

    def end(self, state: str) -> None: ...


class KeepingTracker(Tracker):
    name = "keeping"
    summary = "keeps pictures"

    def __init__(self) -> None:
        self.run = Keeping()

    def follow(self, run: RunInfo) -> TrackedRun:
        return self.run


@pytest.mark.parametrize(
    ("layers", "shares", "pictures"),
    [
        ([LayerState("a", True, 0.2), LayerState("b", False, 0.1)], {"a": 1.0, "b": 0.0}, ["scores.png"]),
        ([LayerState("a", True, 0.2), LayerState("b", False, 0.1)], None, ["scores.png"]),
        ([LayerState("a", True), LayerState("b", False)], {"a": 0.02}, ["layers.png"]),
        ([LayerState("a", True), LayerState("b", False)], None, []),
        ([LayerState("a", False), LayerState("b", False)], {"a": 0.0, "b": 0.0}, []),
    ],
)
def test_the_picture_has_scores_or_how_much_of_each_layer_is_stored(
    tmp_path: Path, layers: list[LayerState], shares: dict[str, float] | None, pictures: list[str]
) -> None:
    tracker = KeepingTracker()
    following = Following(tracker, RunInfo("run", "base", "task", tmp_path, "", None), Notes())
    following.scores(layers, 0.1, "task on base", shares)
    assert list(tracker.run.pictures) == pictures
    assert all(picture.startswith(b"\x89PNG") for picture in tracker.run.pictures.values())


@pytest.mark.parametrize(
    ("settings", "pictures"),
    [
        ({"method": "taps-rank", "budget": "1%", "encoding": "int4"}, ["layers.png"]),
        ({"method": "taps", "budget": "10%"}, ["layers.png"]),
        ({"method": "taps"}, ["scores.png"]),
        ({"method": "head-only"}, []),
    ],
)
def test_a_run_without_scores_has_a_picture_of_what_it_stores(
    registry: Registry, add: Add, settings: dict[str, Any], pictures: list[str]
) -> None:
    tracker = KeepingTracker()
    with_tracker(registry, tracker)
    add("task", tracker="keeping", **settings)
    assert list(tracker.run.pictures) == pictures


class Breaking(TrackedRun):
    """Fails at one of its verbs."""

    id = "breaking"

    def __init__(self, at: str) -> None:
        self.at = at
        self.calls: list[str] = []

    def _maybe(self, verb: str) -> None:
        self.calls.append(verb)
        if verb == self.at:
            raise ConnectionError("the server has gone")

    def parameters(self, values: Mapping[str, object]) -> None:
        self._maybe("parameters")

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._maybe("metrics")

    def picture(self, path: Path) -> None:
        self._maybe("picture")

    def end(self, state: str) -> None:
        self._maybe("end")


class BreakingTracker(Tracker):
    name = "breaking"
    summary = "fails"

    def __init__(self, at: str) -> None:
        self.run = Breaking(at)
        self.at = at

    def follow(self, run: RunInfo) -> TrackedRun:
        if self.at == "follow":
            raise ConnectionError("the server has gone")
        return self.run


def with_tracker(registry: Registry, tracker: Tracker) -> None:
    """Puts a tracker on the shelf where a plugin would."""
    found: Any = registry._context.plugins._loaded
    found.trackers.items[tracker.name] = tracker


@pytest.mark.parametrize("at", ["parameters", "metrics", "picture", "end"])
def test_no_failure_of_a_tracker_loses_a_trained_task(registry: Registry, add: Add, at: str) -> None:
    tracker, notes = BreakingTracker(at), Notes()
    with_tracker(registry, tracker)
    task = add("task", tracker="breaking", progress=notes)
    assert task.state == "ready"
    assert tracker.run.calls.count(at) == 1, "after its first failure it is left alone"
    assert notes.notes == [
        "The tracker 'breaking' failed (ConnectionError: the server has gone); training continues without it."
    ]


def test_a_tracker_that_does_not_begin_stops_before_anything_is_lost(registry: Registry, add: Add) -> None:
    with_tracker(registry, BreakingTracker("follow"))
    with pytest.raises(TrainingError, match=r"could not start tracking the run: the server has gone.*--tracker none"):
        add("task", tracker="breaking")
    assert registry.tasks() == ()
    assert add("task", tracker="none").state == "ready"


class StoppedAt(Breaking):
    """Somebody presses Ctrl-C while the tracker is at work."""

    def _maybe(self, verb: str) -> None:
        if verb == self.at:
            raise KeyboardInterrupt


def test_ctrl_c_after_the_task_is_in_the_catalog_leaves_it_there(registry: Registry, add: Add) -> None:
    tracker = BreakingTracker("end")
    tracker.run = StoppedAt("end")
    with_tracker(registry, tracker)
    with pytest.raises(KeyboardInterrupt):
        add("task", tracker="breaking")
    assert registry.task("task").state == "ready"
    assert registry.runs("task")[0].state == "finished"
    assert registry.verify(deep=True) == ()
    registry.gc()
    assert not list((registry.home / "runs").glob("*/*.safetensors"))


def test_ctrl_c_after_training_and_before_the_catalog_resumes_without_training(registry: Registry, add: Add) -> None:
    tracker = BreakingTracker("picture")
    tracker.run = StoppedAt("picture")
    with_tracker(registry, tracker)
    with pytest.raises(Interrupted):
        add("task", tracker="breaking")
    assert registry.task("task").state == "training"
    trained: list[int] = []

    class Watch(Progress):
        def epoch(self, result: EpochResult) -> None:
            trained.append(result.epoch)

    assert registry.resume_task("task", tracker="none", progress=Watch()).digest == add("undisturbed").digest
    assert trained == []
