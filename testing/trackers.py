"""The contract of a tracker, as tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from PIL import Image

from ..plugins.manager import PluginManager
from ..plugins.trackers import RunInfo, TrackedRun, Tracker
from .home import Listener, add, interrupted, registry_with_base

STATES = ("finished", "failed", "interrupted")


@dataclass(frozen=True)
class Recorded:
    """What a tracker has of a run.

    Attributes:
        parameters: as texts.
        metrics: value by step, by name.
        pictures: names of files.
    """

    parameters: Mapping[str, str]
    metrics: Mapping[str, Mapping[int, float]]
    pictures: frozenset[str]


class TrackerTests:
    """Subclass this, and name the tracker.

    Attributes:
        tracker: under test.
    """

    tracker: ClassVar[Tracker]

    def uri(self, home: Path) -> str:
        """What ``--tracking-uri`` says; empty for a place inside the registry."""
        return ""

    def recorded(self, home: Path, run: TrackedRun) -> Recorded | None:
        """Look up what was recorded; None for a tracker that keeps nothing."""
        return None

    def follow(self, home: Path, run: str = "run-1", resumed: str | None = None) -> TrackedRun:
        """A run of the task ``task`` on the base ``base``."""
        return self.tracker.follow(RunInfo(run, "base", "task", home, self.uri(home), resumed))

    def test_it_has_a_name_and_a_summary(self) -> None:
        assert self.tracker.name, "a tracker has a name"
        assert self.tracker.summary, "a tracker says in a line where it keeps things"
        assert "\n" not in self.tracker.summary, "the summary is one line"

    def test_every_run_has_an_id_of_its_own(self, tmp_path: Path) -> None:
        first, second = self.follow(tmp_path), self.follow(tmp_path, run="run-2")
        assert isinstance(first.id, str), f"the id of a run is a text, not {first.id!r}"
        if self.recorded(tmp_path, first) is not None:
            assert first.id, "the id is empty: the run could not be taken up again"
            assert first.id != second.id, "two runs have one id"
        for run in (first, second):
            run.end("finished")

    def test_parameters_are_kept_and_may_be_said_again(self, tmp_path: Path) -> None:
        run = self.follow(tmp_path)
        run.parameters({"lr": 0.001, "epochs": 30, "base": "base", "skip": False, "input_size": None, "uri": ""})
        run.parameters({"digest": "abc", "epochs": 30})
        run.end("finished")
        found = self.recorded(tmp_path, run)
        if found is not None:
            expected = {"lr": "0.001", "epochs": "30", "base": "base", "digest": "abc", "skip": "False"}
            missing = {name for name, text in expected.items() if found.parameters.get(name) != text}
            assert not missing, f"parameters are lost or changed: {sorted(missing)}"

    def test_metrics_are_kept_by_step(self, tmp_path: Path) -> None:
        run = self.follow(tmp_path)
        for step in (1, 2):
            run.metrics({"train/loss": 1.5 / step, "storage/params": 10**9 + step}, step)
        run.end("finished")
        found = self.recorded(tmp_path, run)
        if found is not None:
            expected = {"train/loss": {1: 1.5, 2: 0.75}, "storage/params": {1: 10**9 + 1, 2: 10**9 + 2}}
            metrics = {name: dict(values) for name, values in found.metrics.items()}
            assert metrics == expected, f"metrics() was told {expected}, kept is {metrics}"

    def test_a_picture_outlives_its_file(self, tmp_path: Path) -> None:
        run, path = self.follow(tmp_path), tmp_path / "scores.png"
        Image.new("RGB", (4, 4)).save(path)
        run.picture(path)
        path.unlink()
        run.end("finished")
        found = self.recorded(tmp_path, run)
        assert found is None or "scores.png" in found.pictures, "picture() did not keep the file under its own name"

    def test_a_run_ends_in_any_of_the_states(self, tmp_path: Path) -> None:
        for state in STATES:
            self.follow(tmp_path, run=f"run-{state}").end(state)

    def test_a_run_is_taken_up_again_by_its_id(self, tmp_path: Path) -> None:
        run = self.follow(tmp_path)
        run.parameters({"epochs": 30})
        run.metrics({"train/loss": 1.5}, 1)
        run.end("interrupted")
        again = self.follow(tmp_path, resumed=run.id or None)
        assert again.id == run.id, f"follow() began another run, {again.id!r}, where {run.id!r} was to be resumed"
        again.parameters({"epochs": 40})
        again.metrics({"train/loss": 0.75}, 2)
        again.end("finished")
        found = self.recorded(tmp_path, again)
        if found is not None:
            assert found.metrics.get("train/loss") == {1: 1.5, 2: 0.75}, "a resumed run lost metrics"

    def test_it_follows_a_task_of_a_registry(self, tmp_path: Path) -> None:
        found = PluginManager().tracker(self.tracker.name)  # raises an error that lists what there is
        assert type(found) is type(self.tracker), f"--tracker {self.tracker.name} is {type(found)}"
        settings = {"tracker": self.tracker.name, "tracking_uri": self.uri(tmp_path)}
        with registry_with_base(tmp_path, "test_resnet", 32, {}) as registry:
            assert interrupted(registry, tmp_path, "task", **settings), "the task was not stopped"
            (begun,) = registry.runs("task")
            listener = Listener()
            registry.resume_task("task", progress=listener)
            (ended,) = registry.runs("task")
            assert ended.tracker_run == begun.tracker_run, "the resumed task is followed as another run"
            add(registry, tmp_path, "other", progress=listener, **settings)
            assert not listener.notes, f"the user was told: {listener.notes}"
