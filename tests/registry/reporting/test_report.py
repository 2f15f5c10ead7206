"""The report: what is in it, that it stays one file, and that it escapes what users name."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from taps_registry import Registry
from taps_registry.cli.main import _run
from taps_registry.cli.session import Session
from taps_registry.cli.upkeep import ui
from taps_registry.registry.errors import Interrupted, NotFoundError
from taps_registry.registry.folders import HISTORY
from taps_registry.registry.records import BudgetUse, LayerInfo, Run, SetCost, Task, TaskLayer
from taps_registry.registry.reporting.bars import budget_rows, cost_rows
from taps_registry.registry.reporting.collecting import (
    BaseReport,
    Report,
    collect,
)
from taps_registry.registry.reporting.heatmap import heat_map
from taps_registry.registry.reporting.limits import task_limits
from taps_registry.registry.reporting.links import UI_HOST, UI_PORT, tracked_at
from taps_registry.registry.reporting.page import render
from taps_registry.registry.reporting.scales import linear, logarithmic
from taps_registry.registry.reporting.scatter import scatter
from taps_registry.registry.reporting.shares import share_text
from taps_registry.registry.training.progress import EpochResult, Progress

Add = Callable[..., Task]
QUICK: dict[str, Any] = {"epochs": 1, "augment": "none", "tracker": "none", "workers": 0, "batch_size": 8}
GATED: dict[str, Any] = {**QUICK, "epochs": 3, "sparsity": 30.0, "score_lr": 0.05}
TASKS = ("birds", "cars", "ships", "trams", "trucks")
NASTY = '<script>alert("1")</script>&\''


class Page(HTMLParser):
    """The elements of a page, with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def values(self, attribute: str) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get(attribute)) is not None]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A registry that no test changes: tasks with and without scores, with and without a budget of their own, budgets
    of the registry and of a base, a base without tasks.
    """
    folder = tmp_path_factory.mktemp("report") / "home"
    with Registry.init(folder) as made:
        made.add_base("base", "test_resnet", random_init=True, input_size=32)
        made.add_base("bare", "test_resnet", random_init=True, input_size=32, seed=1)
        made.add_task("cars", "base", images, **GATED)
        made.add_task("birds", "base", images, **{**QUICK, "method": "head-only", "tracker": "csv"})
        made.add_task("ships", "base", images, **{**QUICK, "method": "hard-sharing", "encoding": "bf16"})
        made.add_task("trams", "base", images, **{**QUICK, "method": "taps-rank", "budget": "1%", "encoding": "int4"})
        made.add_task("trucks", "base", images, **{**QUICK, "method": "taps", "budget": "10%,1MB"})
        made.set_budget(base="base", max_bytes=10**7)
        made.set_budget(max_params=10**6)
    return folder


@pytest.fixture(scope="module")
def report(home: Path) -> Report:
    with Registry.open(home) as opened:
        return collect(opened._context)


@pytest.fixture(scope="module")
def base(report: Report) -> BaseReport:
    return next(one for one in report.bases if one.base.name == "base")


def wide(base: BaseReport, tasks: int, layers: int) -> BaseReport:
    """Many tasks with many layers, made of a small report."""
    names = [f"stage{index // 10}.block{index % 10}.convolution" for index in range(layers)]
    infos = tuple(LayerInfo(name, "conv", name.partition(".")[0], 100) for name in names)
    states = tuple(
        TaskLayer(name, "conv", name.partition(".")[0], index % 5 == 0, 0.05 + index % 5 * 0.03, 100, 400)
        for index, name in enumerate(names)
    )
    first = base.tasks[0]
    many = tuple(
        replace(
            first,
            task=replace(first.task, name=f"task-{index}", layers=states),
            cost=replace(first.cost, task=f"task-{index}"),
        )
        for index in range(tasks)
    )
    return replace(base, base=replace(base.base, layers=infos), tasks=many)


# What training writes down


def test_the_history_has_the_scores_of_every_epoch_and_the_stored_ones_are_those_of_the_task(home: Path) -> None:
    with Registry.open(home) as opened:
        task = opened.task("cars")
    epochs = json.loads((home / "runs" / str(task.run) / HISTORY).read_text("utf-8"))
    scores = {layer.name: layer.score for layer in task.layers if layer.score is not None}
    assert [set(epoch["scores"]) for epoch in epochs] == [set(scores)] * 3
    assert epochs[0]["scores"] != epochs[2]["scores"]
    best = max(epoch["epoch"] for epoch in epochs if epoch["best"])
    assert epochs[best - 1]["scores"] == pytest.approx(scores, abs=1e-6)


class StopsAfterTheFirst(Progress):
    def epoch(self, result: EpochResult) -> None:
        if result.epoch == 1:
            raise KeyboardInterrupt


# What is collected and drawn


def test_the_report_has_what_the_registry_says_of_each_task(home: Path, base: BaseReport) -> None:
    with Registry.open(home) as opened:
        assert [one.task for one in base.tasks] == [opened.task(name) for name in TASKS]
        assert base.cost == next(cost for cost in opened.cost().bases if cost.base == "base")
        runs = {run.id: run for run in opened.runs()}
    assert [one.run for one in base.tasks] == [runs[str(one.task.run)] for one in base.tasks]
    assert [use.base for use in base.budgets] == [None, "base"]


def test_the_heat_map_shows_scores_or_how_much_of_each_layer_is_stored(base: BaseReport) -> None:
    heat = heat_map(base)
    columns = [column for stage in heat.stages for column in stage.columns]
    assert [column.name for column in columns] == [layer.name for layer in base.base.layers if layer.kind != "norm"]
    sizes = {layer.name: 4 * layer.params for layer in base.base.layers}
    for row in heat.rows:
        states = {layer.name: layer for layer in row.task.task.layers}
        for column, cell in zip(columns, (cell for cells in row.stages for cell in cells), strict=True):
            state = states[column.name]
            assert cell.look.startswith(("open", "stored")) == state.open
            share = share_text(state.bytes / sizes[column.name])
            assert cell.text == (share if state.score is None else f"{state.score:z.2f}")
            assert cell.title.startswith(f"{column.name}: ")
            assert state.score is not None or not state.open or share in cell.title
    assert [column.tasks for column in columns] == [
        sum(layer.open for one in base.tasks for layer in one.task.layers if layer.name == column.name)
        for column in columns
    ]


def test_gated_norms_have_a_column_and_other_norms_none(base: BaseReport) -> None:
    norm = next(layer.name for layer in base.base.layers if layer.kind == "norm")
    cars = base.tasks[1]
    layers = tuple(replace(layer, score=0.2) if layer.name == norm else layer for layer in cars.task.layers)
    gated = replace(base, tasks=(replace(cars, task=replace(cars.task, layers=layers)),))
    known = {column.name for stage in heat_map(base).stages for column in stage.columns}
    names = [column.name for stage in heat_map(gated).stages for column in stage.columns]
    assert [name for name in names if name not in known] == [norm]
    trucks = base.tasks[4]
    settings = {**trucks.task.settings, "norms": "gated"}  # within a budget they have gates, but no scores
    gated = replace(base, tasks=(replace(trucks, task=replace(trucks.task, settings=settings)),))
    names = [column.name for stage in heat_map(gated).stages for column in stage.columns]
    assert names == [layer.name for layer in base.base.layers]


@pytest.mark.parametrize(
    ("stored", "score", "threshold", "look"),
    [
        (True, 0.1, 0.1, "open1"),
        (True, 0.16, 0.1, "open2"),
        (True, 0.31, 0.1, "open3"),
        (False, 0.06, 0.1, "near"),
        (False, -0.3, 0.1, "closed"),
        (False, -0.0001, 0.1, "closed"),
        (True, 0.2, 0.0, "open1"),
        (False, -0.2, -0.1, "closed"),
    ],
)
def test_a_cell_looks_as_far_from_the_threshold_as_its_score_is(
    base: BaseReport, stored: bool, score: float, threshold: float, look: str
) -> None:
    cars = base.tasks[1]
    layer = replace(cars.task.layers[0], open=stored, score=score)
    task = replace(cars.task, layers=(layer, *cars.task.layers[1:]), settings={"threshold": threshold})
    heat = heat_map(replace(base, tasks=(replace(cars, task=task),)))
    cell = heat.rows[0].stages[0][0]
    assert cell.look == look
    assert cell.text != "-0.00"


@pytest.mark.parametrize(
    ("share", "look", "text"),
    [
        (1.0, "stored3", "100 %"),
        (0.5, "stored3", "50 %"),
        (0.12, "stored3", "12 %"),
        (0.1, "stored3", "10 %"),
        (0.0996, "stored3", "10 %"),
        (0.098, "stored2", "9.8 %"),
        (0.03, "stored2", "3.0 %"),
        (0.01, "stored2", "1.0 %"),
        (0.0096, "stored2", "1.0 %"),
        (0.009, "stored1", "0.9 %"),
        (0.004, "stored1", "0.4 %"),
        (0.0001, "stored1", "<0.1 %"),
    ],
)
def test_a_cell_without_score_looks_as_dense_as_its_layer_is_stored(
    base: BaseReport, share: float, look: str, text: str
) -> None:
    trams, info = base.tasks[3], replace(base.base.layers[0], params=100_000)
    layers = (replace(trams.task.layers[0], open=True, bytes=round(400_000 * share)), *trams.task.layers[1:])
    changed = replace(base.base, layers=(info, *base.base.layers[1:]))
    heat = heat_map(replace(base, base=changed, tasks=(replace(trams, task=replace(trams.task, layers=layers)),)))
    cell = heat.rows[0].stages[0][0]
    assert (cell.look, cell.text) == (look, text)
    assert cell.title == f"{info.name}: {text} of the layer's bytes stored"


def test_a_layer_that_is_not_stored_has_no_hatch_and_the_legend_has_what_appears(base: BaseReport) -> None:
    birds = base.tasks[0]
    heat = heat_map(replace(base, tasks=(birds,)))
    assert heat.legend == (("not", "not stored"),)
    assert {(cell.look, cell.text) for cells in heat.rows[0].stages for cell in cells} == {("not", "0 %")}
    legend = dict(heat_map(base).legend)
    shown = {cell.look for row in heat_map(base).rows for cells in row.stages for cell in cells}
    assert set(legend) == shown
    assert {"stored1", "stored2", "stored3"} <= shown
    assert legend["stored1"] == "stored, less than 1 % of its bytes"


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("0.5%", [(20, True, False)]),
        ("300kB", [(300_000, True, True)]),
        ("1MiB", [(2**20, True, True)]),
        ("500k", [(500_000, False, True)]),
        ("5%, 7B,30", [(200, True, False), (7, True, True), (30, False, True)]),
    ],
)
def test_a_percentage_is_of_the_base_in_float32(text: str, limits: list[tuple[float, bool, bool]]) -> None:
    found = task_limits(text, 1000)
    assert [(round(one.amount, 6), one.in_bytes, one.whole) for one in found] == limits
    assert [one.text for one in found] == [part.strip() for part in text.split(",")]


def test_no_budget_and_one_of_another_version_is_no_limit() -> None:
    assert task_limits("", 1000) == ()
    assert task_limits("remaining/3", 1000) == ()


def test_a_bar_has_a_mark_where_the_budget_of_its_task_lies(base: BaseReport) -> None:
    rows = {row.name: row for row in cost_rows(base)}
    longest = max(one.task.bytes for one in base.tasks)
    for name, share in (("trams", 0.01), ("trucks", 0.1)):
        (mark,) = rows[name].bytes.marks  # a file of 1 MB is far beyond the longest bar
        assert not mark.whole
        assert mark.at == pytest.approx(100 * share * 4 * base.base.backbone_params / longest)
        weights, norms, _ = rows[name].bytes.segments
        assert norms.start + norms.width <= mark.at
        assert weights.start == 0
    assert rows["trams"].budget == "1%: 14.9 kB of weights and norms"
    assert rows["trucks"].budget == "10%: 149.1 kB of weights and norms, file of 1.0 MB"
    assert {(rows[name].budget, rows[name].bytes.marks) for name in ("birds", "cars", "ships")} == {("", ())}


def test_limits_a_little_beyond_the_longest_bar_lengthen_the_scale(base: BaseReport) -> None:
    trams = base.tasks[3]
    budget = f"{trams.task.bytes * 5 // 4}B,{trams.task.params.total}"
    task = replace(trams.task, settings={**trams.task.settings, "budget": budget})
    (row,) = cost_rows(replace(base, tasks=(replace(trams, task=task),)))
    assert [(mark.at, mark.whole) for mark in row.bytes.marks + row.params.marks] == [(100, True), (100, True)]
    assert sum(segment.width for segment in row.bytes.segments) == pytest.approx(80, abs=0.1)
    assert sum(segment.width for segment in row.params.segments) == pytest.approx(100)
    assert row.budget.endswith(" parameters")


def test_the_bars_of_a_task_come_to_what_it_costs(base: BaseReport) -> None:
    rows = {row.name: row for row in cost_rows(base)}
    longest = max(one.task.bytes for one in base.tasks)
    for one in base.tasks:
        bar = rows[one.task.name].bytes
        assert sum(segment.width for segment in bar.segments) == pytest.approx(100 * one.task.bytes / longest)
        assert [segment.part for segment in bar.segments] == ["weights", "norms", "head"]
        widths = [segment.width for segment in rows[one.task.name].params.segments]
        params = one.task.params
        most = max(other.task.params.total for other in base.tasks)
        assert widths == pytest.approx([100 * part / most for part in (params.weights, params.norms, params.head)])


def test_budgets_show_what_is_used_and_when_it_is_too_much(base: BaseReport) -> None:
    used = sum(one.task.bytes for one in base.tasks)
    registry, own = budget_rows(base)
    assert (own.scope, own.what, own.over) == ("the base base", "bytes", False)
    assert sum(segment.width for segment in own.bar.segments) == pytest.approx(100 * used / 10**7)
    assert own.limit_at == 100
    assert [segment.part for segment in registry.bar.segments] == ["weights", "norms", "head", "elsewhere"]
    params = sum(one.task.params.total for one in base.tasks)
    assert sum(segment.width for segment in registry.bar.segments) == pytest.approx(100 * params / 10**6)
    assert registry.bar.segments[-1].width == 0
    (shared,) = budget_rows(replace(base, budgets=(BudgetUse(None, None, 10**6, 0, params + 500),)))
    assert shared.bar.segments[-1].amount == "500"
    low = replace(base, budgets=(BudgetUse("base", used // 2, None, used, 0),))
    (over,) = budget_rows(low)
    assert over.over
    assert over.limit_at == pytest.approx(50, abs=0.1)
    (nothing,) = budget_rows(replace(base, budgets=(BudgetUse("base", 0, None, used, 0),)))
    assert (nothing.over, nothing.limit_at, nothing.share) == (True, 0, "")


def test_a_set_of_tasks_is_a_bar_of_its_own(base: BaseReport) -> None:
    shared = SetCost("shared", "vmt-adapter", "0" * 64, 1000, 4000, ("cars",))
    rows = cost_rows(replace(base, cost=replace(base.cost, sets=(shared,))))
    assert [(row.name, row.is_set) for row in rows][-1] == ("shared", True)
    assert [segment.amount for segment in rows[-1].bytes.segments] == ["4.0 kB"]


def test_the_scatter_puts_the_dearer_to_the_right_and_the_better_above(base: BaseReport) -> None:
    tasks = [
        replace(one, task=replace(one.task, metrics={"test/accuracy": accuracy}))
        for one, accuracy in zip(base.tasks[:3], (0.5, 0.9, 0.7), strict=True)
    ]
    plot = scatter(replace(base, tasks=tuple(tasks)))
    assert plot is not None
    by_size = sorted(plot.points, key=lambda point: point.x)
    assert [point.task for point in by_size] == [one.task.name for one in sorted(tasks, key=lambda one: one.task.bytes)]
    assert [point.task for point in sorted(plot.points, key=lambda point: point.y)] == ["cars", "ships", "birds"]
    assert len({(method.shape, method.colour) for method in plot.methods}) == 3
    assert all(point.measured == "test" for point in plot.points)


def test_accuracy_on_validation_images_is_told_apart_and_no_accuracy_is_said(base: BaseReport) -> None:
    first, second, third = base.tasks[:3]
    changed = (
        replace(first, task=replace(first.task, metrics={"val/accuracy": 0.5})),
        replace(second, task=replace(second.task, metrics={})),
        third,
    )
    plot = scatter(replace(base, tasks=changed))
    assert plot is not None
    assert [point.measured for point in plot.points] == ["validation", "test"]
    assert plot.absent == ("cars",)
    assert scatter(replace(base, tasks=(changed[1],))) is None


def test_names_that_would_cover_each_other_wait_for_the_mouse(base: BaseReport) -> None:
    cars = base.tasks[1]
    twins = [replace(cars, task=replace(cars.task, name=name)) for name in ("one", "two", "three", "four", "five")]
    plot = scatter(replace(base, tasks=tuple(twins)))
    assert plot is not None
    assert [point.named for point in plot.points] == [True, True, True, True, False]
    assert [point.anchor for point in plot.points] == ["start", "end", "middle", "middle", "start"]
    long = replace(cars, task=replace(cars.task, name="n" * 120))
    plot = scatter(replace(base, tasks=(long,)))
    assert plot is not None
    assert not plot.points[0].named


def test_a_mark_in_the_middle_has_its_name_on_one_side_whatever_its_bytes_are(base: BaseReport) -> None:
    cars = base.tasks[1]
    plots = [
        scatter(replace(base, tasks=(replace(cars, task=replace(cars.task, name="n" * 120, bytes=size)),)))
        for size in range(1000, 1100)
    ]
    assert {(plot.points[0].x, plot.points[0].anchor) for plot in plots if plot} == {(50.0, "start")}


def test_many_methods_have_different_marks(base: BaseReport) -> None:
    tasks = [replace(base.tasks[0], task=replace(base.tasks[0].task, method=f"m{index:02}")) for index in range(20)]
    plot = scatter(replace(base, tasks=tuple(tasks)))
    assert plot is not None
    assert len({(method.shape, method.colour) for method in plot.methods}) == 20


@pytest.mark.parametrize(
    "values", [[0.333], [0.0], [-2.0], [0.5, 0.99], [1e-4, 2e-4], [0, 1], [-0.1, 0.3], [3, 1e6], [0.2, 0.2]]
)
def test_a_linear_axis_holds_its_values_and_has_round_ticks(values: list[float]) -> None:
    axis = linear(values, lambda value: f"{value:.6g}")
    assert axis.low <= min(values) <= max(values) <= axis.high
    assert axis.low < axis.high
    assert 2 <= len(axis.ticks) <= 8
    assert [tick.at for tick in axis.ticks] == sorted(tick.at for tick in axis.ticks)
    assert all(axis.at(float(tick.label)) == pytest.approx(tick.at, abs=0.1) for tick in axis.ticks)


@pytest.mark.parametrize("values", [[1], [3], [999, 1001], [7e3, 4.5e7], [1, 1e12], [250, 260, 9e4]])
def test_a_logarithmic_axis_holds_its_values(values: list[float]) -> None:
    axis = logarithmic(values, lambda value: f"{value:.12g}")
    assert axis.low < min(values) <= max(values) < axis.high
    assert 1 <= len(axis.ticks) <= 6
    assert all(axis.at(float(tick.label)) == pytest.approx(tick.at, abs=0.1) for tick in axis.ticks)
    assert axis.at(0) == 0


RUN = Run(
    "r", "t", "b", "finished", "taps", 0, 1, 1, "", "mlflow", "a1/b2", "", {}, datetime.now(UTC), datetime.now(UTC)
)


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("http://tracking:5000", "http://tracking:5000/#/runs/a1%2Fb2"),
        ("https://tracking/mlflow/", "https://tracking/mlflow/#/runs/a1%2Fb2"),
        ("https://user:secret@tracking", "https://tracking/#/runs/a1%2Fb2"),
        ("http://[::1]:5000", "http://[::1]:5000/#/runs/a1%2Fb2"),
        ("javascript://tracking/%0aalert(1)", ""),
        ("http://[", ""),
        ("http://tracking:port", ""),
        ("sqlite:///runs.db", ""),
        ("databricks", ""),
        ("", "http://127.0.0.1:5000/#/runs/a1%2Fb2"),
    ],
)
def test_a_run_on_a_server_has_a_link_without_password(uri: str, address: str) -> None:
    at = tracked_at(replace(RUN, settings={"tracking_uri": uri}))
    assert at.address == address
    assert at.inside == (uri == "")
    assert at.run == "a1/b2"


def test_the_page_of_a_run_inside_is_where_ui_serves_it_by_default() -> None:
    defaults = {parameter.name: parameter.default for parameter in ui.params}
    assert (defaults["host"], defaults["port"]) == (UI_HOST, UI_PORT)


def test_runs_of_other_trackers_have_no_link() -> None:
    csv = replace(RUN, tracker="csv", tracker_run="f00")
    assert tracked_at(csv).folder == "tracking/f00"
    assert tracked_at(replace(csv, settings={"tracking_uri": "http://host/"})).address == ""
    assert tracked_at(replace(RUN, tracker="none", tracker_run="")) == tracked_at(None)


# The page


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render(report)


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(page: str) -> None:
    parsed = Page(page)
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "image", "base", "form", "use"}
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]
    assert not {name for _, attributes in parsed.elements for name in attributes} & {"src", "srcset", "style", "action"}
    assert all(href.startswith("#") for href in parsed.values("href"))
    assert "url(" not in page
    assert "@import" not in page
    assert "//" not in re.sub(r"<!doctype html>", "", page)


def test_the_policy_allows_this_style_sheet_and_nothing_else(page: str) -> None:
    (policy,) = [meta["content"] for meta in Page(page).all("meta") if meta.get("http-equiv")]
    style = page[page.index("<style>") + len("<style>") : page.index("</style>")]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert str(policy).split("; ")[:2] == ["default-src 'none'", f"style-src 'sha256-{digest}'"]


def test_ids_are_unique_and_what_refers_to_them_finds_them(page: str) -> None:
    parsed = Page(page)
    ids = Counter(parsed.values("id"))
    assert [name for name, count in ids.items() if count > 1] == []
    referred = [*(href[1:] for href in parsed.values("href")), *parsed.values("for"), *parsed.values("aria-labelledby")]
    assert set(referred) <= set(ids)
    assert {f"task-{name}" for name in TASKS} <= set(referred)


def test_every_scrolling_box_can_be_reached_and_has_a_name(page: str) -> None:
    regions = [attributes for _, attributes in Page(page).elements if attributes.get("class") == "scroll"]
    assert len(regions) == 3
    assert all(box["tabindex"] == "0" and box["role"] == "region" for box in regions)
    assert all(box.get("aria-label") or box.get("aria-labelledby") for box in regions)


def test_the_table_has_what_the_command_line_prints(page: str, base: BaseReport) -> None:
    text = " ".join(Page(page).text.split())
    for one in base.tasks:
        assert one.task.method in text
        assert f"{one.task.open_layers} of {one.task.gated_layers}" in text
        assert f"{100 * one.task.metrics['test/accuracy']:.1f} %" in text
    csv_run = next(one.run for one in base.tasks if one.task.name == "birds")
    assert csv_run is not None
    assert f"tracking/{csv_run.tracker_run}" in text


@pytest.mark.parametrize(
    ("uri", "href", "note"),
    [
        ("http://tracking:5000", "http://tracking:5000/#/runs/a1%2Fb2", False),
        ("", "http://127.0.0.1:5000/#/runs/a1%2Fb2", True),
    ],
)
def test_a_run_in_mlflow_is_a_link_and_one_inside_says_that_ui_must_be_running(
    report: Report, base: BaseReport, uri: str, href: str, note: bool
) -> None:
    cars = replace(base.tasks[1], run=replace(RUN, settings={"tracking_uri": uri}))
    parsed = Page(render(replace(report, bases=(replace(base, tasks=(cars,)),))))
    (link,) = [link for link in parsed.all("a") if not str(link["href"]).startswith("#")]
    assert (link["href"], link["rel"]) == (href, "noreferrer")
    assert (link.get("title") == "works while taps-registry ui is running") == note
    assert ("mlflow a1/b2*" in parsed.text) == note
    assert ("while taps-registry ui is running there at http://127.0.0.1:5000." in parsed.text) == note


def test_budgets_of_tasks_are_among_the_numbers_and_in_the_legend(page: str, report: Report, base: BaseReport) -> None:
    text = " ".join(Page(page).text.split())
    assert "10%: 149.1 kB of weights and norms, file of 1.0 MB" in text
    assert "limit of the task's own budget, for weights and norms only" in text
    without = Page(render(replace(report, bases=(replace(base, tasks=base.tasks[:3]),)))).text
    assert "the task's own budget" not in without
    assert "weights and norms" not in without


def test_what_users_name_is_escaped(report: Report, base: BaseReport) -> None:
    names = {"name": NASTY, "method": NASTY, "encoding": NASTY, "classes": (NASTY, "plain")}
    tasks = tuple(
        replace(
            one,
            task=replace(
                one.task, **names, layers=tuple(replace(layer, name=layer.name + NASTY) for layer in one.task.layers)
            ),
            cost=replace(one.cost, task=NASTY),
        )
        for one in base.tasks
    )
    layers = tuple(replace(layer, name=layer.name + NASTY, stage=NASTY) for layer in base.base.layers)
    model = replace(base.base, name=NASTY, model=NASTY, layers=layers)
    waiting = ((replace(tasks[0].task, state="training"), replace(RUN, method=NASTY)),)
    text = render(replace(report, only=NASTY, bases=(replace(base, base=model, tasks=tasks, training=waiting),)))
    parsed = Page(text)
    assert parsed.all("script") == []
    assert "alert(" in parsed.text
    escaped = "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;&amp;&#39;"
    assert 0 < text.count("alert(") == text.count(escaped)


def test_an_empty_registry_says_what_to_type(tmp_path: Path) -> None:
    with Registry.init(tmp_path / "home") as made:
        text = made.report()
    assert "taps-registry add-base --help" in Page(text).text


def test_a_base_without_tasks_says_what_to_type(home: Path) -> None:
    with Registry.open(home) as opened:
        text = opened.report(base="bare")
    assert "taps-registry add-task NAME --base bare --data DIR" in Page(text).text
    assert "cars" not in text


def test_without_accuracy_or_budgets_the_page_says_so(report: Report, base: BaseReport) -> None:
    birds = base.tasks[0]
    bare = replace(birds, task=replace(birds.task, metrics={}), run=None)
    text = Page(render(replace(report, bases=(replace(base, tasks=(bare,), budgets=()),)))).text
    for said in ("No task was measured.", "There is no budget."):
        assert said in text


def test_a_task_in_training_is_listed(registry: Registry, add: Add) -> None:
    with pytest.raises(Interrupted):
        add("task", **GATED, progress=StopsAfterTheFirst())
    assert "task: taps, 1 of 3 epochs" in Page(registry.report()).text


def test_an_unknown_base_is_an_error(home: Path) -> None:
    with Registry.open(home) as opened, pytest.raises(NotFoundError, match="There is no base 'nonsense'"):
        opened.report(base="nonsense")


def test_a_hundred_tasks_with_a_hundred_and_sixty_layers_stay_a_page(report: Report, base: BaseReport) -> None:
    text = render(replace(report, bases=(wide(base, 100, 160),)))
    parsed = Page(text)
    assert sum(str(attributes.get("title", "")).startswith("stage") for attributes in parsed.all("td")) == 16_000
    assert len(text) < 2_000_000
    assert {link.get("tabindex") for link in parsed.all("a") if str(link["href"]).startswith("#task-")} == {"-1"}


# The command


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Runs the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: _run(["--home", str(home), "report", *arguments], Session())


def test_the_command_writes_a_page_and_replaces_an_earlier_one(run: Callable[..., int]) -> None:
    assert run() == 0
    first = Path("report.html").read_text("utf-8")
    assert first.startswith("<!doctype html>")
    assert run("--base", "bare") == 0
    second = Path("report.html").read_text("utf-8")
    assert "task-cars" in first
    assert "task-cars" not in second
    assert [path.name for path in Path().iterdir()] == ["report.html"]


def test_the_command_replaces_another_file_only_when_it_is_told_to(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.html").write_text("mine")
    assert run("-o", "mine.html") == 2
    assert Path("mine.html").read_text() == "mine"
    assert "mine.html exists and is not a report" in capsys.readouterr().err
    assert run("-o", "mine.html", "--force") == 0
    assert Path("mine.html").read_text("utf-8").startswith("<!doctype html>")


def test_the_command_refuses_a_folder_and_a_place_that_is_not_there(run: Callable[..., int]) -> None:
    Path("folder").mkdir()
    assert run("-o", "folder") == 2
    assert run("-o", "folder", "--force") == 13
    assert run("-o", "nowhere/report.html") == 13


def test_the_command_prints_the_page_for_a_dash(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-o", "-") == 0
    assert capsys.readouterr().out.rstrip().endswith("</html>")
    assert list(Path().iterdir()) == []


def test_the_command_says_when_there_is_no_such_base(run: Callable[..., int]) -> None:
    assert run("--base", "nonsense") == 5
    assert list(Path().iterdir()) == []
