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
from taps_registry.registry.home import NAME

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the benchmarks are no part of the package

from benchmarks.published import run as published
from benchmarks.published.protocols import PROTOCOLS, Protocol
from benchmarks.suite import make, pictures, rows, run, runs, summaries, tables
from benchmarks.suite.bases import SMALL
from benchmarks.suite.contenders import CONTENDERS
from benchmarks.suite.rows import Row
from benchmarks.suite.tasks import SIZES, SPLITS, TASKS, Source, latin, write

TINY = SIZES["tiny"]
EVERY = [*TASKS.values(), latin()]


def drawn(source: Source, split: str, size: Any = TINY) -> list[tuple[str, bytes]]:
    return [(picture.label, picture.pixels.tobytes()) for picture in source.pictures(split, size)]


@pytest.mark.parametrize("source", EVERY, ids=lambda source: source.name)
def test_a_task_is_the_same_each_time_and_its_splits_share_no_image(source: Source) -> None:
    found = {split: drawn(source, split) for split in SPLITS}
    assert found == {split: drawn(source, split) for split in SPLITS}
    every = [pixels for split in SPLITS for _, pixels in found[split]]
    assert len(every) == len(set(every))
    classes = {split: {label for label, _ in found[split]} for split in SPLITS}
    assert classes["train"] == classes["val"] == classes["test"] or source.name == "digits"


@pytest.mark.parametrize("source", EVERY, ids=lambda source: source.name)
def test_more_images_leave_those_of_a_smaller_size_as_they_are(source: Source) -> None:
    assert set(drawn(source, "val")) <= set(drawn(source, "val", replace(TINY, val=4 * TINY.val)))


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
    assert (full.device, full.rank) == ("cpu", None)
    written = csv.read_text()
    run.run(plan, csv, 1)
    assert csv.read_text() == written


@pytest.mark.usefixtures("here")
def test_a_task_that_cannot_be_is_a_row_with_the_reason(plan: run.Plan, tmp_path: Path) -> None:
    impossible = replace(CONTENDERS["full"], settings={"method": "full", "encoding": "no-such"})
    run.run(replace(plan, contenders=[impossible, CONTENDERS["head-only"]]), tmp_path / "rows.csv", 1)
    refused, fine = rows.read(tmp_path / "rows.csv")
    assert refused.test is None
    assert refused.device == "cpu"
    assert "no-such" in refused.note
    assert fine.test is not None


@pytest.mark.usefixtures("here")
def test_a_rank_is_chosen_for_a_share_of_the_base(plan: run.Plan, tmp_path: Path) -> None:
    wanted = replace(CONTENDERS["lora 10%"], share=0.3), replace(CONTENDERS["lora 5%"], share=0.6, recoded=())
    run.run(replace(plan, tasks=("shapes", "counts"), contenders=wanted), tmp_path / "rows.csv", 1)
    shapes, recoded, larger, *counts = rows.read(tmp_path / "rows.csv")
    assert shapes.weights > 0
    assert 0.2 < shapes.share <= 0.3
    assert 0.5 < larger.share <= 0.6
    assert shapes.rank is not None
    assert larger.rank is not None
    assert larger.rank > shapes.rank == recoded.rank > 1
    assert [row.rank for row in counts] == [shapes.rank, shapes.rank, larger.rank]  # a head takes nothing of the share


@pytest.mark.usefixtures("here")
def test_a_re_encoded_result_comes_from_the_trained_one_whatever_was_before(plan: run.Plan, tmp_path: Path) -> None:
    both = replace(CONTENDERS["full"], recoded=("int3", "fp16"))
    run.run(replace(plan, contenders=[both]), tmp_path / "rows.csv", 1)
    trained, bits, halves = rows.read(tmp_path / "rows.csv")
    assert [row.recoded for row in (trained, bits, halves)] == ["", "int3", "fp16"]
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


def test_a_file_of_earlier_code_gets_the_columns_it_lacks_once(tmp_path: Path) -> None:
    csv = tmp_path / "rows.csv"
    old, new = result("full", "greek", 0, 0.9), result("lora 5%", "greek", 0, 0.8, rank=3, device="NVIDIA H100")
    rows.append(csv, [old])
    lines = [line.split(",") for line in csv.read_text().splitlines()]
    kept = [place for place, title in enumerate(lines[0]) if title not in ("rank", "device")]
    earlier = [[line[place] for place in kept] for line in lines]
    csv.write_text("\n".join(",".join(line) for line in [*earlier, earlier[1][:5]]))  # the last one torn
    assert rows.read(csv) == [old]
    rows.append(csv, [new])
    assert rows.read(csv) == [old, new]
    written = csv.read_text()
    assert written.splitlines()[:2] == [",".join(line) for line in lines]
    rows.append(csv, [])
    assert csv.read_text() == written
    assert list(tmp_path.iterdir()) == [csv]


def test_rows_go_into_columns_in_the_files_own_order(tmp_path: Path) -> None:
    csv = tmp_path / "rows.csv"
    csv.write_text(",".join(["of-later-code", *rows.COLUMNS[::-1]]) + "\n")
    rows.append(csv, [result("full", "greek", 0, 0.9)])
    assert rows.read(csv) == [result("full", "greek", 0, 0.9)]


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
    assert summaries.finals(found) == [found[1], found[4]]


def test_tables_pair_each_run_with_full_fine_tuning() -> None:
    found = [result("full", task, seed, 0.8 + 0.1 * seed) for task in ("greek", "shapes") for seed in (0, 1)]
    found += [result("taps 5%", "greek", 0, 0.79), result("taps 5%", "greek", 1, 0.87)]
    made = summaries.summarise(found[4:], found[:4])
    assert made is not None
    assert made.accuracy == pytest.approx(0.83)
    assert made.behind == pytest.approx(-0.02)
    assert "| taps 5% | 2 | 83.0 | -2.0 | 10.00 |" in tables.overview(found)  # one task: no error to tell


def test_seeds_of_one_task_and_backbone_are_one_measurement_in_the_standard_error() -> None:
    found = [result("full", task, seed, 0.5) for task in ("greek", "shapes", "counts") for seed in (0, 1)]
    for task, tests in (("greek", (0.50, 0.52)), ("shapes", (0.51, 0.53)), ("counts", (0.56, 0.60))):
        found += [result("taps 5%", task, seed, test) for seed, test in enumerate(tests)]
    made = summaries.summarise(found[6:], found[:6])
    assert made is not None
    assert made.runs == 6
    assert made.behind == pytest.approx(0.11 / 3)  # of 0.01, 0.02 and 0.08
    assert made.error == pytest.approx((0.0043 / 3 / 2 / 3 * 2) ** 0.5)  # squares of -8/300, -5/300, 13/300; over 2, 3


def test_a_short_table_has_the_named_rows_only() -> None:
    found = [result(method, "greek", 0, 0.5) for method in ("full", "norm-only", "last 25%", "taps 10%")]
    found.append(replace(found[3], recoded="int4"))
    lines = tables.overview(found, only=tables.BRIEF).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| full", "| norm-only", "| taps 10%"]
    named = {summaries.label(replace(found[0], method=name, recoded=recoded)) for name, recoded in made_by_the_suite()}
    assert set(tables.BRIEF) <= named


def test_two_methods_are_compared_head_to_head_on_each_backbone() -> None:
    found = [
        replace(result(method, task, 0, test + 0.1 * (backbone == "vit")), backbone=backbone)
        for backbone in ("resnet34", "vit")
        for task, tests in (("greek", (0.50, 0.53)), ("shapes", (0.60, 0.61)))
        for method, test in zip(("lora 5%", "taps-rank 5%"), tests, strict=True)
    ]
    found.append(replace(found[-1], task="counts"))  # the other one has no such run
    lines = tables.head_to_head(found).splitlines()
    assert lines[0] == "| method | against | % of base bytes | resnet34 | vit | all |"
    assert lines[2:] == ["| taps-rank 5% | lora 5% | 10.0 / 10.0 | +2.0 ± 1.0 | +2.0 ± 1.0 | +2.0 ± 0.6 |"]


def test_every_rival_is_run_by_the_suite() -> None:
    known = {f"{name}, re-encoded as {recoded}" if recoded else name for name, recoded in made_by_the_suite()}
    assert {name for pair in tables.RIVALS for name in pair} <= known


def made_by_the_suite() -> list[tuple[str, str]]:
    """Contenders, each with the encodings that its result is stored in; empty for the run itself."""
    return [(one.name, encoding) for one in CONTENDERS.values() for encoding in ("", *one.recoded)]


def test_no_two_series_of_the_picture_differ_by_hue_alone() -> None:
    looks = [(one.marker, one.line, one.hollow) for one in pictures.SERIES.values()]
    assert len(looks) == len(set(looks))
    found = [
        replace(result(name, "greek", 0, 0.5), recoded=encoding, share=0.1) for name, encoding in made_by_the_suite()
    ]
    families = {pictures._family(name) for name in summaries.labels(found)} - {"full", "head-only"}
    assert families == set(pictures.SERIES)


def test_rows_of_several_sizes_or_lengths_do_not_go_into_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = tmp_path / "rows.csv"
    rows.append(csv, [result("full", "greek", seed, 0.8) for seed in (0, 1)])
    rows.append(csv, [replace(result("full", "greek", 0, 0.9), epochs=8)])
    assert tables.main(["--csv", str(csv)]) == 1
    said = capsys.readouterr().err
    assert "size tiny with 1 epochs (2), size tiny with 8 epochs (1)" in said
    assert "--size tiny --epochs 1." in said
    assert list(tmp_path.iterdir()) == [csv]
    assert tables.main(["--csv", str(csv), "--size", "tiny", "--epochs", "8"]) == 0
    assert "| full | 1 | 90.0 |" in (tmp_path / "rows.md").read_text()
    assert tables.main(["--csv", str(csv), "--size", "gpu"]) == 1


@pytest.mark.parametrize(
    ("words", "name"),
    [([], "suite"), (["--size", "cpu"], "suite"), (["--size", "gpu"], "suite-gpu"), (["--quick"], "quick")],
)
def test_each_size_has_a_file_of_its_own(words: list[str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    monkeypatch.setattr(sys, "argv", ["run", *words])
    monkeypatch.setattr(run, "run", lambda plan, csv, workers: written.append(csv))
    monkeypatch.setattr(run.signal, "signal", lambda *_: None)
    assert run.main() == 0
    assert written == [Path(f"benchmarks/results/{name}.csv")]


def test_the_middle_rates_have_a_column_where_they_have_all_runs() -> None:
    middle = {name: run.middle(CONTENDERS[name], "vit") for name in ("full", "taps 5%", "head-only")}

    def rows_at(name: str, test: float, lr: str, seeds: tuple[int, ...] = (0, 1)) -> list[Row]:
        val = 0.6 if lr == "9" else 0.5
        return [replace(result(name, "greek", seed, test, lr=lr, val=val), backbone="vit") for seed in seeds]

    found = rows_at("full", 0.8, middle["full"])
    found += rows_at("taps 5%", 0.7, "9") + rows_at("head-only", 0.6, "9")
    others = rows_at("full", 0.8, middle["full"]) + rows_at("taps 5%", 0.75, middle["taps 5%"])
    others += rows_at("head-only", 0.65, middle["head-only"], (0,))
    assert summaries.middles([*found, *others]) == [*rows_at("full", 0.8, middle["full"]), *others]
    told = tables.overview(found, others)
    assert "| taps 5% | 2 | 70.0 | -10.0 | -5.0 | 10.00 |" in told
    assert "| head-only | 2 | 60.0 | -20.0 |  | 10.00 |" in told
    assert "untuned rate" not in tables.overview(found, found)
    assert "untuned rate" not in tables.overview(found, others[2:])
    assert "`python -m benchmarks.suite.run --size tiny --epochs 1`, then" in tables.page([*found, *others], "rows")


def test_the_page_and_its_pictures(tmp_path: Path) -> None:
    found = [
        result(method, task, seed, 0.5 + 0.1 * seed, open=f"conv{seed}", share=share, machine="2 x test")
        for method, share in (("full", 1.0), ("taps 10%", 0.1), ("head-only", 0.001))
        for task in ("greek", "shapes")
        for seed in (0, 1)
    ]
    found.append(replace(found[-1], method="taps 1% int4", test=None, note="The norms alone take more."))
    text = tables.page(found, "rows")
    assert "The norms alone take more." in text
    assert "(2 here)" in text
    assert "`python -m benchmarks.suite.run --size tiny --epochs 1`." in text
    pictures.accuracy(found, tmp_path / "accuracy.svg")
    pictures.layers(found, tmp_path / "layers.svg")
    again = tmp_path / "again.svg"
    pictures.accuracy(found, again)
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


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small backbone of random weights in the place of each protocol's."""

    def add(registry: Registry, *_: Any) -> None:
        if not registry.bases():
            registry.add_base("base", "test_resnet", random_init=True, input_size=32)

    monkeypatch.setattr(published, "add_base", add)


def command(name: str, tasks: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Protocol, list[str]]:
    """A protocol of its first so many tasks, and the words that run it on ``folder/data`` for an epoch."""
    monkeypatch.setitem(PROTOCOLS, name, replace(PROTOCOLS[name], tasks=PROTOCOLS[name].tasks[:tasks]))
    words = f"{name} --data {folder / 'data'} --home {folder / 'home'} --pretrained --device cpu --tracker none"
    return PROTOCOLS[name], [*words.split(), "--epochs", "1", "--batch-size", "8", "--augment", "none"]


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_says_what_is_missing_and_runs_on_folders_of_its_layout(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stand-ins: three noisy classes in the place of each data set."""
    protocol, words = command(name, 2, tmp_path, monkeypatch)
    data, first = tmp_path / "data", protocol.tasks[0]
    assert published.main(words) == 1
    assert str(data) in capsys.readouterr().err
    for task in protocol.tasks:
        stand_in(data / task.name / "train", seed=1)
    assert published.main(words) == 1
    missing = data / first.name / ("val" if name == "decathlon" else "test")
    assert f"{first.name}: put its images into {missing}/CLASS/" in capsys.readouterr().err
    for task in protocol.tasks:
        stand_in(data / task.name / protocol.tested_on, seed=2)
    words += ["--methods", "head only"]
    assert published.main(words) == 0
    said = capsys.readouterr()
    assert f"{first.name}: 3 classes, the published split has {first.classes}." in said.err
    assert said.out.count("| TAPS, paper |") == said.out.count("| head only, here |") == 1
    monkeypatch.setattr(Registry, "add_task", None)  # everything is there: nothing is trained again
    assert published.main(words) == 0
    assert capsys.readouterr().out == said.out


@pytest.mark.usefixtures("untrained")
def test_taps_in_a_protocol_is_the_papers_and_with_a_budget_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol, words = command("domainnet", 1, tmp_path, monkeypatch)
    for split in ("train", "test"):
        stand_in(tmp_path / "data" / "clipart" / split, seed=1)
    methods = [name for name in published.METHODS if name.startswith("TAPS")]
    assert published.main([*words, "--methods", *methods]) == 0
    with Registry.open(tmp_path / "home") as registry:
        tasks = [registry.task(published.task_name(protocol.tasks[0], method)) for method in methods]
    assert [(task.method, task.settings["budget"], task.encoding) for task in tasks] == [
        ("taps", "", "fp32"),
        ("taps-rank", "10%", "fp32"),
        ("taps-rank", "1%", "int4"),
    ]
    assert tasks[0].settings["penalty"] == "uniform"


def test_every_method_of_a_protocol_has_tasks_of_its_own_name() -> None:
    names = [published.task_name(PROTOCOLS["domainnet"].tasks[0], method) for method in published.METHODS]
    assert len(names) == len(set(names))
    assert all(NAME.fullmatch(name) for name in names)


def test_every_command_that_make_prints_names_a_base_of_the_suite() -> None:
    printed = make.commands(Path("out"), "cpu")
    assert len(printed) == len(SMALL) + 1
