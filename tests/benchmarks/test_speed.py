"""The benchmarks of speed: that they run, measure what they say, and write it down. Not how fast anything is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from taps_registry import Registry

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the benchmarks are no part of the package

from benchmarks.speed import run
from benchmarks.speed.files import _from_the_disk

ROOT = Path(__file__).resolve().parents[2]


def measured(out: Path, *arguments: str) -> dict[str, Any]:
    """What the benchmark wrote."""
    done = CliRunner().invoke(run.main, [*arguments, "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return read(out)


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.read_text("utf-8"))
    assert {"date", "command", "machine", "versions"} <= set(found)
    return found


def test_a_small_catalog_is_asked_every_question(tmp_path: Path) -> None:
    arguments = ("--tasks", "30", "--layers", "5", "--rounds", "2", "--database", "sqlite")
    command = [sys.executable, "-m", "benchmarks.catalog", *arguments, "--out", str(tmp_path / "catalog.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = read(tmp_path / "catalog.json")
    asked = found["databases"]["sqlite"]
    assert {"cost", "cost --by layer", "tasks", "budget show"} <= set(asked)
    for name, answer in asked.items():
        assert len(answer["seconds"]) == 2
        assert answer["plans"], name
        assert any("taps_artifact_layers" in plan for plan in answer["plans"]) == (
            name in ("cost --by layer", "show (one task)")
        )


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_steps_are_compared_before_and_after_what_is_stored_is_fixed(tmp_path: Path, model: str) -> None:
    """And near the end of the run, where less of a transformer trains."""
    near_end = ["a step of taps-rank, near the end of the run / of full"] if model == "test_vit" else []
    arguments = ("--quick", "--part", "steps", "--model", model, "--pixels", "32")
    found = measured(tmp_path / "speed.json", *arguments)
    what = [result["what"] for result in found["results"]]
    assert [text.partition(": ")[2] for text in what] == [
        "a step of W0 + I*D in the forward pass / of full",
        "a step of norm-only: no weight has a gradient / of full",
        "a step of taps-rank, before it is fixed / of full",
        "a step of taps-rank, fixed / of full",
        "a step of taps-rank, fixed / of W0 + I*D",
        *near_end,
        "a step of taps, before it is fixed / of full",
        "a step of taps, fixed / of full",
        "a step of taps, fixed / of W0 + I*D",
    ]
    for result in found["results"]:
        assert 0 < result["low"] <= result["ratio"] <= result["high"]
    (note,) = (result["note"] for result in found["results"] if "of taps, fixed / of full" in result["what"])
    opened, layers = (int(word) for word in note.split(" layers")[0].split(" of "))
    assert 0 < opened < layers


def test_whole_runs_are_timed_with_each_method_and_with_what_is_recommended(tmp_path: Path) -> None:
    arguments = ("--quick", "--part", "add-task", "--model", "test_resnet", "--pixels", "32")
    found = measured(tmp_path / "speed.json", *arguments)
    assert [result["what"] for result in found["results"]] == [
        f"test_resnet: add-task {spent} / full, 3 epochs, 32 px"
        for spent in (
            "--budget 10% --method taps-rank",
            "--budget 10% --method taps",
            "--budget 1% --encoding int4 --method taps-rank",
        )
    ]
    assert all(0 < result["low"] <= result["ratio"] <= result["high"] for result in found["results"])


def test_files_are_measured_and_loading_them(tmp_path: Path) -> None:
    found = measured(tmp_path / "speed.json", "--quick", "--part", "files", "--model", "test_resnet")
    sizes, speeds = found["results"][:4], found["results"][4:]
    assert all("bytes of the file of a task / of its tensors" in result["what"] for result in sizes)
    assert all(1 < result["ratio"] == result["low"] == result["high"] for result in sizes)
    assert [result["what"].partition(": ")[2] for result in speeds] == [
        "reading base and artifact from the disk / loading the task from it",
        "reading base and artifact from the page cache / loading the task",
        "copying base and artifact in memory / loading the task",
        "reading base and artifact from the page cache / composing the task",
    ]
    assert re.fullmatch(r"\d+ MB, which the disk gave at \d+ MB/s", speeds[0]["note"])
    assert all(0 < result["low"] <= result["ratio"] <= result["high"] for result in speeds)


def test_loading_from_the_disk_reads_no_copy_of_a_home_twice(
    registry: Registry, add: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    add("task")
    opened: list[Path] = []
    usual = Registry.open

    def noted(home: Path) -> Registry:
        opened.append(home)
        return usual(home)

    monkeypatch.setattr(Registry, "open", noted)
    _from_the_disk(registry, "task", 2)
    assert len(opened) == len(set(opened)) == 4
    assert registry._context.home.root not in opened
