"""Tables and pictures from the rows of the suite: ``python -m benchmarks.suite.tables``.

Writes ``suite.md`` and two pictures beside ``suite.csv``, and with ``--readme`` the first table into README.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import nan, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from . import rows
from .contenders import CONTENDERS
from .rows import Row
from .run import RATES, RESULTS, chosen, middle
from .tasks import TASKS

REFERENCE = "full"
SHOWN = "taps-rank 10%"  # whose layers the picture shows
README = Path("README.md")
MARK = re.compile(r"(<!-- benchmark -->\n).*?(<!-- /benchmark -->)", re.DOTALL)


def finals(found: Sequence[Row]) -> list[Row]:
    """The rows at the learning rate that its method and backbone ended with."""
    best = chosen(found)
    return [row for row in found if best.get((row.method, row.backbone), row.lr) == row.lr]


def middles(found: Sequence[Row]) -> list[Row]:
    """The rows at the middle of each grid of learning rates, where everybody would be without a search."""
    return [
        row
        for row in found
        if row.method in CONTENDERS and row.backbone in RATES and row.lr == middle(CONTENDERS[row.method], row.backbone)
    ]


def ordered(found: Iterable[Row]) -> list[Row]:
    """Rows in an order that does not depend on which run finished first."""
    places = {name: place for place, name in enumerate([*RATES, *TASKS])}
    last = len(places)
    return sorted(
        found, key=lambda row: (places.get(row.backbone, last), places.get(row.task, last), row.task, row.seed)
    )


def label(row: Row) -> str:
    """The row's name in tables."""
    return f"{row.method}, stored again as {row.recoded}" if row.recoded else row.method


def labels(found: Iterable[Row]) -> list[str]:
    """Every name, in the order of ``CONTENDERS``."""
    order = list(CONTENDERS)
    places = {label(row): (order.index(row.method) if row.method in order else len(order)) for row in found}
    return sorted(places, key=places.__getitem__)


@dataclass(frozen=True)
class Summary:
    """What some rows of one method come to.

    Attributes:
        runs: how many there are.
        accuracy: mean on test images, 0..1.
        behind: mean difference to full fine-tuning on the same task, backbone and seed.
        error: standard error of ``behind``.
        share: mean share of the base's bytes, the head apart.
        seconds: mean duration of a run.
    """

    runs: int
    accuracy: float
    behind: float
    error: float
    share: float
    seconds: float


def summarise(some: Sequence[Row], reference: Sequence[Row]) -> Summary | None:
    """Rows of one method against those of another; None if no run of it has an accuracy."""
    done = [row for row in some if row.test is not None]
    if not done:
        return None
    other = {_cell(row): row.test for row in reference if row.test is not None}
    differences = [row.test - other[_cell(row)] for row in done if row.test is not None and _cell(row) in other]
    return Summary(
        runs=len(done),
        accuracy=mean(row.test for row in done if row.test is not None),
        behind=mean(differences) if differences else nan,
        error=stdev(differences) / sqrt(len(differences)) if len(differences) > 1 else nan,
        share=mean(row.share for row in done),
        seconds=mean(row.seconds for row in done),
    )


def _cell(row: Row) -> tuple[str, str, int]:
    return row.task, row.backbone, row.seed


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))


def overview(found: Sequence[Row], unsearched: Sequence[Row] = ()) -> str:
    """Every method over all tasks, backbones and seeds.

    Args:
        found: the rows that count.
        unsearched: rows at other learning rates, which get a column if they are others; methods that have not been run
            on all tasks, backbones and seeds have nothing in it.
    """
    reference, beside = _of(found, REFERENCE), _of(unsearched, REFERENCE)
    complete = {_cell(row) for row in beside} == {_cell(row) for row in reference}
    both = complete and {row.key for row in unsearched} != {row.key for row in found}
    lines = []
    for name in labels(found):
        made = summarise(_of(found, name), reference)
        if made is None:
            lines.append([name, "0", *("" for _ in range(5 if both else 4))])
            continue
        others = _of(unsearched, name) if both and name != REFERENCE else []
        enough = {_cell(row) for row in others} == {_cell(row) for row in _of(found, name)}
        other = summarise(others, beside) if enough else None
        lines.append(
            [
                name,
                str(made.runs),
                f"{100 * made.accuracy:.1f}",
                "" if name == REFERENCE else f"{100 * made.behind:+.1f} ± {100 * made.error:.1f}",
                *([f"{100 * other.behind:+.1f} ± {100 * other.error:.1f}" if other else ""] if both else ()),
                f"{100 * made.share:.2f} %",
                f"{made.seconds:.1f}",
            ]
        )
    columns = ["against full", *(["at the middle rate"] if both else ())]
    return table(["method", "runs", "accuracy, %", *columns, "of the base's bytes", "seconds"], lines)


def by(found: Sequence[Row], column: Callable[[Row], str], *, shares: bool) -> str:
    """Mean accuracies with a column for each value of something, and the share of the base if wanted."""
    values = list(dict.fromkeys(column(row) for row in found))
    lines = []
    for name in labels(found):
        cells = [name]
        for value in values:
            made = summarise([row for row in _of(found, name) if column(row) == value], [])
            size = f" ({100 * made.share:.1f} %)" if made and shares else ""
            cells.append(f"{100 * made.accuracy:.1f}{size}" if made else "—")
        lines.append(cells)
    return table(["method", *values], lines)


def learning_rates(found: Sequence[Row]) -> str:
    """What the search chose."""
    best = chosen(found)
    backbones = list(dict.fromkeys(backbone for _, backbone in best))
    names = [name for name in CONTENDERS if any(method == name for method, _ in best)]
    return table(["method", *backbones], ([name, *(best.get((name, one), "—") for one in backbones)] for name in names))


def refused(found: Iterable[Row]) -> str:
    """Why runs have no accuracy, each reason once a method and backbone."""
    reasons = {(row.method, row.backbone): row.note for row in found if row.test is None}
    return "\n".join(f"- {method}, {backbone}: {note}" for (method, backbone), note in reasons.items())


def _of(found: Iterable[Row], name: str) -> list[Row]:
    return [row for row in found if label(row) == name]


def page(found: Sequence[Row], stem: str) -> str:
    """The whole page in Markdown, for rows of the file of this name."""
    last = finals(found)
    dates = sorted(row.date for row in last)
    places = sorted({row.machine for row in last})
    facts = (
        f"{len(last)} rows of `{stem}.csv`, {dates[0][:10]} to {dates[-1][:10]}, on {', '.join(places)}; "
        f"torch {last[0].torch}, timm {last[0].timm}; "
        f"{', '.join(str(epochs) for epochs in sorted({row.epochs for row in last}))} epochs a run."
    )
    blocks = [
        "# Methods side by side",
        "<!-- Written by `python -m benchmarks.suite.tables`. -->",
        facts,
        "Accuracy is on test images, of the stored file read back. *Against full* is the mean difference to full "
        "fine-tuning on the same task, backbone and seed, in points, with its standard error. Bytes are those of the "
        "values stored, without the head's and without the text that names them.",
        overview(last, middles(found)),
        f"![Accuracy against bytes]({stem}-accuracy.svg)",
        "## By backbone",
        "In brackets what a task takes of the base's bytes.",
        by(last, lambda row: row.backbone, shares=True),
        "## By task",
        by(last, lambda row: row.task, shares=False),
        f"## Which layers opened: {SHOWN}",
        f"![Layers opened, task by task]({stem}-layers.svg)",
        "## Learning rates",
        "The best of those that each method tried on a backbone, by validation accuracy. *At the middle rate* is how "
        "everybody does at the middle of the grid instead."
        if len({(row.method, row.backbone, row.lr) for row in found}) > len(chosen(found))
        else "Each method has had one a backbone, the middle of its grid; no others were tried.",
        learning_rates(found),
    ]
    if missing := refused(last):
        blocks += ["## What could not be", missing]
    return "\n\n".join(blocks) + "\n"


def accuracy_picture(found: Sequence[Row], path: Path) -> None:
    """Accuracy against bytes, one panel a backbone; full fine-tuning, and what stores nothing, as lines."""
    pyplot = _pyplot()
    backbones = list(dict.fromkeys(row.backbone for row in found))
    figure, panels = pyplot.subplots(1, len(backbones), figsize=(4.2 * len(backbones), 4.4), squeeze=False, sharey=True)
    for panel, backbone in zip(panels[0], backbones, strict=True):
        here = [row for row in found if row.backbone == backbone]
        series: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
        for name in labels(here):
            made = summarise(_of(here, name), _of(here, REFERENCE))
            if made is not None and made.share == 0:
                panel.axhline(100 * made.behind, color="grey", linestyle=":", label=f"{name}, nothing stored")
            elif made is not None and name != REFERENCE:
                error = 0.0 if made.error != made.error else 100 * made.error
                series[_family(name)].append((100 * made.share, 100 * made.behind, error))
        for (family, points), marker in zip(series.items(), cycle("osDv^<>PXh*pd"), strict=False):
            points.sort()
            shares, behind, errors = zip(*points, strict=True)
            style = "-" if family.startswith("taps-rank") else ""
            panel.errorbar(shares, behind, errors, marker=marker, linestyle=style, label=family, markersize=5)
        panel.axhline(0, color="black", linewidth=0.8)
        panel.set(title=backbone, xlabel="bytes a task, % of the base", xscale="log")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("points against full fine-tuning")
    panels[0][0].set_yscale("symlog", linthresh=10)  # up to ten points as they are, more of them closer
    panels[0][0].set_yticks([5, 2, 0, -2, -5, -10, -20, -50], ["5", "2", "0", "-2", "-5", "-10", "-20", "-50"])
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2 * len(backbones), fontsize=8)
    _save(figure, path)


def _family(name: str) -> str:
    """Rows that are drawn as one series."""
    if ", stored again" in name:
        return f"{name.split()[0]}, stored again"
    if name.startswith("taps penalty"):
        return "taps, a penalty"
    if name.startswith("taps-rank"):
        return "taps-rank, few bits" if "int" in name else "taps-rank"
    if name.startswith("taps"):
        return "taps, a budget"
    return name.rpartition(" ")[0] if name.endswith("%") else name


def layers_picture(found: Sequence[Row], path: Path) -> None:
    """How often each layer opened, task by task, one panel a backbone."""
    pyplot = _pyplot()
    from matplotlib.ticker import MaxNLocator

    backbones = list(dict.fromkeys(row.backbone for row in found))
    tasks = list(dict.fromkeys(row.task for row in found))
    figure, panels = pyplot.subplots(len(backbones), 1, figsize=(8, 2.2 * len(backbones)), squeeze=False)
    for panel, backbone in zip(panels[:, 0], backbones, strict=True):
        here = [row for row in found if row.backbone == backbone and row.test is not None]
        every = next((row.open.split() for row in here if row.method == REFERENCE), [])
        runs = {task: [row.open.split() for row in _of(here, SHOWN) if row.task == task] for task in tasks}
        often = [
            [mean(layer in opened for opened in runs[task]) if runs[task] else nan for layer in every] for task in tasks
        ]
        panel.imshow(often, aspect="auto", cmap="Greens", vmin=0, vmax=1)
        panel.set_yticks(range(len(tasks)), tasks, fontsize=8)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_title(f"{backbone}: {len(every)} layers, from the stem to the last", fontsize=9)
    _save(figure, path)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "suite"
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    figure.set_layout_engine("constrained")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    _pyplot().close(figure)


def filled(text: str, content: str) -> str:
    """A page with other content between its marks; as it was without any."""
    return MARK.sub(lambda mark: f"{mark[1]}\n{content}\n\n{mark[2]}", text)


def main() -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite.tables", description="Tables and pictures.")
    parser.add_argument("--csv", type=Path, default=RESULTS / "suite.csv", help="rows that the runs left")
    parser.add_argument("--readme", action="store_true", help="put the first table into README.md as well")
    given = parser.parse_args()
    found = ordered(rows.read(given.csv))
    if not finals(found):
        print(f"{given.csv} has no rows. First: python -m benchmarks.suite.run", file=sys.stderr)
        return 1
    folder = given.csv.parent
    (folder / f"{given.csv.stem}.md").write_text(page(found, given.csv.stem), "utf-8")
    accuracy_picture(finals(found), folder / f"{given.csv.stem}-accuracy.svg")
    layers_picture(finals(found), folder / f"{given.csv.stem}-layers.svg")
    if given.readme:
        README.write_text(filled(README.read_text("utf-8"), overview(finals(found), middles(found))), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
