"""The benchmark suite: tasks that are always the same and never overlap, a runner that goes on, tables that add up."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from taps_registry import Registry

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no part of the package

from benchmarks.published import run as published
from benchmarks.published.protocols import PROTOCOLS
from benchmarks.suite import make, rows, run, runs, tables
from benchmarks.suite.bases import SMALL
from benchmarks.suite.contenders import CONTENDERS
from benchmarks.suite.rows import Row
from benchmarks.suite.tasks import SIZES, SPLITS, TASKS, Source, latin, write

TINY = SIZES["tiny"]
EVERY = [*TASKS.values(), latin()]


def pictures(source: Source, split: str, size: Any = TINY) -> list[tuple[str, bytes]]:
    return [(picture.label, picture.pixels.tobytes()) for picture in source.pictures(split, size)]


@pytest.mark.parametrize("source", EVERY, ids=lambda source: source.name)
def test_a_task_is_the_same_each_time_and_its_splits_share_no_image(source: Source) -> None:
    found = {split: pictures(source, split) for split in SPLITS}
    assert found == {split: pictures(source, split) for split in SPLITS}
    every = [pixels for split in SPLITS for _, pixels in found[split]]
    assert len(every) == len(set(every))
    classes = {split: {label for label, _ in found[split]} for split in SPLITS}
    assert classes["train"] == classes["val"] == classes["test"] or source.name == "digits"


@pytest.mark.parametrize("source", EVERY, ids=lambda source: source.name)
def test_more_images_leave_those_of_a_smaller_size_as_they_are(source: Source) -> None:
    assert set(pictures(source, "val")) <= set(pictures(source, "val", replace(TINY, val=4 * TINY.val)))


def test_no_scan_of_a_digit_is_in_two_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[str, set[bytes]] = {}
    for split in SPLITS:
        seen = used.setdefault(split, set())

        def note(pixels: Any, side: int, rng: Any, *, wobble: float, seen: set[bytes] = seen) -> Any:
            seen.add(pixels.tobytes())
            return numpy.zeros((side, side), "float32")

        monkeypatch.setattr("benchmarks.suite.drawing.scan", note)
        list(TASKS["digits"].pictures(split, replace(TINY, train=1500, val=500, test=1500)))
    assert [len(used[split]) for split in SPLITS] == [700, 200, 897]
    assert not used["train"] & used["val"]
    assert not used["test"] & (used["train"] | used["val"])


def test_a_folder_is_written_once(tmp_path: Path) -> None:
    made = write(TASKS["shapes"], tmp_path, TINY)
    assert {path.name for path in made.iterdir()} == set(SPLITS)
    assert len(list((made / "train").glob("*/*.png"))) == TINY.train
    marked = made / "train" / "mark"
    marked.touch()
    assert write(TASKS["shapes"], tmp_path, TINY) == made
    assert marked.exists()


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> run.Plan:
    """Two methods on one small task and an untrained ResNet."""
    resnet = replace(SMALL[0], arguments={"channels": [8, 8, 16, 16]}, epochs=1)
    monkeypatch.setattr("benchmarks.suite.bases.SMALL", (resnet,))
    return run.Plan(
        data=tmp_path / "data",
        size="tiny",
        tasks=("shapes",),
        backbones=("resnet34",),
        seeds=(0,),
        contenders=[CONTENDERS["full"], CONTENDERS["norm-only"]],
        epochs=1,
        search=False,
    )


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs in this process instead of in others."""
    monkeypatch.setattr(runs.signal, "signal", lambda *_: None)
    runs.prepare(str(tmp_path))

    def carry_out(jobs: Any, csv: Path, workers: int, title: str) -> None:
        for job in jobs:
            rows.append(csv, runs.carry_out(job))

    monkeypatch.setattr(run, "carry_out", carry_out)


@pytest.mark.usefixtures("here")
def test_the_runner_goes_on_where_it_stopped(plan: run.Plan, tmp_path: Path) -> None:
    csv = tmp_path / "rows.csv"
    run.run(replace(plan, contenders=plan.contenders[:1]), csv, 1)
    first = csv.read_text()
    run.run(plan, csv, 1)
    found = rows.read(csv)
    assert csv.read_text().startswith(first)
    assert [row.method for row in found] == ["full", "norm-only"]
    full, norms = found
    assert full.norms == norms.norms > 0 == norms.weights
    assert full.share > 1 > norms.share > 0
    assert len(full.open.split()) > 15
    assert norms.open == ""
    written = csv.read_text()
    run.run(plan, csv, 1)
    assert csv.read_text() == written


@pytest.mark.usefixtures("here")
def test_a_task_that_cannot_be_is_a_row_with_the_reason(plan: run.Plan, tmp_path: Path) -> None:
    impossible = replace(CONTENDERS["full"], settings={"method": "full", "encoding": "no-such"})
    run.run(replace(plan, contenders=[impossible, CONTENDERS["head-only"]]), tmp_path / "rows.csv", 1)
    refused, fine = rows.read(tmp_path / "rows.csv")
    assert refused.test is None
    assert "no-such" in refused.note
    assert fine.test is not None


@pytest.mark.usefixtures("here")
def test_a_rank_is_chosen_for_a_share_of_the_base(plan: run.Plan, tmp_path: Path) -> None:
    wanted = replace(CONTENDERS["lora 10%"], share=0.3)
    run.run(replace(plan, contenders=[wanted]), tmp_path / "rows.csv", 1)
    lora = rows.read(tmp_path / "rows.csv")[0]
    assert lora.weights > 0
    assert 0.2 < lora.share <= 0.3


@pytest.mark.usefixtures("here")
def test_a_result_stored_again_comes_from_the_trained_one_whatever_was_before(plan: run.Plan, tmp_path: Path) -> None:
    both = replace(CONTENDERS["full"], recoded=("1bit", "fp16"))
    run.run(replace(plan, contenders=[both]), tmp_path / "rows.csv", 1)
    trained, bits, halves = rows.read(tmp_path / "rows.csv")
    assert [row.recoded for row in (trained, bits, halves)] == ["", "1bit", "fp16"]
    assert bits.apart < halves.apart < trained.apart
    assert halves.test == pytest.approx(trained.test, abs=0.05)  # not so if it came from single bits
    assert trained.bytes == trained.header + trained.apart + 4 * trained.head


def test_a_torn_line_is_passed_over_and_written_again(tmp_path: Path) -> None:
    csv = tmp_path / "rows.csv"
    one, two = result("full", "greek", 0, 0.9), result("full", "greek", 1, 0.8)
    rows.append(csv, [one, two])
    csv.write_bytes(csv.read_bytes()[:-40])
    assert rows.read(csv) == [one]
    rows.append(csv, [two])
    assert rows.read(csv) == [one, two]


def result(method: str, task: str, seed: int, test: float, **more: Any) -> Row:
    settings: dict[str, Any] = {"lr": "0.001", "val": test, "share": 0.1, "open": "conv1", "date": "2026-01-01"} | more
    return Row(
        task=task,
        backbone="resnet",
        seed=seed,
        method=method,
        budget="",
        encoding="fp32",
        epochs=1,
        size="tiny",
        test=test,
        **settings,
    )


def test_the_learning_rate_is_chosen_on_validation_images_of_the_search_only() -> None:
    found = [
        result("full", "greek", 0, 0.9, lr="0.001", val=0.5),
        result("full", "greek", 0, 0.1, lr="0.003", val=0.6),
        result("full", "greek", 1, 0.9, lr="0.001", val=0.99),
        result("full", "shapes", 0, 0.9, lr="0.001", val=0.7),
        result("full", "shapes", 0, 0.1, lr="0.003", val=0.65),
        result("full", "shapes", 0, 0.9, lr="0.01", val=0.99),
    ]
    assert run.chosen(found) == {("full", "resnet"): "0.003"}
    assert tables.finals(found) == [found[1], found[4]]


def test_tables_pair_each_run_with_full_fine_tuning() -> None:
    found = [result("full", task, seed, 0.8 + 0.1 * seed) for task in ("greek", "shapes") for seed in (0, 1)]
    found += [result("taps 5%", "greek", 0, 0.79), result("taps 5%", "greek", 1, 0.87)]
    made = tables.summarise(found[4:], found[:4])
    assert made is not None
    assert made.accuracy == pytest.approx(0.83)
    assert made.behind == pytest.approx(-0.02)
    assert made.error == pytest.approx(0.01)
    assert "| taps 5% | 2 | 83.0 | -2.0 ± 1.0 | 10.00 % |" in tables.overview(found)


def test_the_middle_rates_have_a_column_where_they_have_all_runs() -> None:
    middle = {name: run.middle(CONTENDERS[name], "vit") for name in ("full", "taps 5%", "head-only")}

    def rows_at(name: str, test: float, lr: str, seeds: tuple[int, ...] = (0, 1)) -> list[Row]:
        return [replace(result(name, "greek", seed, test, lr=lr, val=0.5), backbone="vit") for seed in seeds]

    found = rows_at("full", 0.8, middle["full"])
    found += rows_at("taps 5%", 0.7, "9") + rows_at("head-only", 0.6, "9")
    others = rows_at("full", 0.8, middle["full"]) + rows_at("taps 5%", 0.75, middle["taps 5%"])
    others += rows_at("head-only", 0.65, middle["head-only"], (0,))
    assert tables.middles([*found, *others]) == [*rows_at("full", 0.8, middle["full"]), *others]
    told = tables.overview(found, others)
    assert "| taps 5% | 2 | 70.0 | -10.0 ± 0.0 | -5.0 ± 0.0 | 10.00 % |" in told
    assert "| head-only | 2 | 60.0 | -20.0 ± 0.0 |  | 10.00 % |" in told
    assert "at the middle rate" not in tables.overview(found, found)
    assert "at the middle rate" not in tables.overview(found, others[2:])


def test_the_page_and_its_pictures(tmp_path: Path) -> None:
    found = [
        result(method, task, seed, 0.5 + 0.1 * seed, open=f"conv{seed}", share=share, machine="2 x test")
        for method, share in (("full", 1.0), ("taps 10%", 0.1), ("head-only", 0.001))
        for task in ("greek", "shapes")
        for seed in (0, 1)
    ]
    found.append(replace(found[-1], method="taps 1% int4", test=None, note="The norms alone take more."))
    text = tables.page(found, "rows.csv")
    assert "The norms alone take more." in text
    tables.accuracy_picture(found, tmp_path / "accuracy.svg")
    tables.layers_picture(found, tmp_path / "layers.svg")
    again = tmp_path / "again.svg"
    tables.accuracy_picture(found, again)
    assert again.read_bytes() == (tmp_path / "accuracy.svg").read_bytes()


def test_a_marked_place_is_filled_and_the_rest_left_alone() -> None:
    text = "before\n<!-- benchmark -->\nold\n<!-- /benchmark -->\nafter\n"
    assert tables.filled(text, "new") == "before\n<!-- benchmark -->\n\nnew\n\n<!-- /benchmark -->\nafter\n"


def stand_in(folder: Path, seed: int) -> None:
    """Three classes of ten images of noise each."""
    chance = numpy.random.default_rng(seed)
    for name in ("one", "two", "three"):
        (folder / name).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(chance.integers(0, 256, (32, 32, 3), "uint8")).save(folder / name / f"{number}.png")


def test_a_protocol_says_what_is_missing_and_runs_on_folders_of_its_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stand-ins: three noisy classes in the place of each data set."""
    data, words = tmp_path / "data", ["--home", str(tmp_path / "home"), "--pretrained", "--device", "cpu"]
    protocol = replace(PROTOCOLS["decathlon"], tasks=PROTOCOLS["decathlon"].tasks[:2])
    monkeypatch.setitem(PROTOCOLS, "decathlon", protocol)
    command = ["decathlon", "--data", str(data), *words, "--epochs", "1", "--batch-size", "8", "--augment", "none"]
    assert published.main(command) == 1
    assert str(data) in capsys.readouterr().err
    for task in protocol.tasks:
        stand_in(data / task.name / "train", seed=1)
    assert published.main(command) == 1
    assert f"aircraft: put its images into {data / 'aircraft' / 'val'}/CLASS/" in capsys.readouterr().err
    for task in protocol.tasks:
        stand_in(data / task.name / "val", seed=2)

    def untrained(registry: Registry, *_: Any) -> None:
        if not registry.bases():
            registry.add_base("base", "test_resnet", random_init=True, input_size=32)

    monkeypatch.setattr(published, "add_base", untrained)
    chosen = [*command, "--methods", "head only", "TAPS"]
    assert published.main(chosen) == 0
    said = capsys.readouterr()
    assert "aircraft: 3 classes, the published split has 100." in said.err
    assert "| TAPS, paper |  |  | 78.70 |  |" in said.out
    assert said.out.count("| TAPS, here |") == said.out.count("| head only, here |") == 1
    monkeypatch.setattr(Registry, "add_task", None)  # everything is there: nothing is trained again
    assert published.main(chosen) == 0
    assert capsys.readouterr().out.partition("| TAPS, here")[2] == said.out.partition("| TAPS, here")[2]


def test_every_command_that_make_prints_names_a_base_of_the_suite() -> None:
    printed = make.commands(Path("out"), "cpu")
    assert len(printed) == len(SMALL) + 1
