"""Tables and pictures from the rows of the suite: ``python -m benchmarks.suite.tables``.

Writes ``suite.md`` and two pictures beside ``suite.csv``, and with ``--readme`` a short table into README.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from . import rows
from .contenders import CONTENDERS
from .rows import Row
from .run import EPOCHS, RATES, chosen, default_csv, middle
from .tasks import SIZES, TASKS

REFERENCE = "full"
SHOWN = "taps 10%"  # whose layers the picture shows: within the same bytes `taps-rank` has nearly all of them
BRIEF = (  # the rows of README.md
    REFERENCE,
    "head-only",
    "norm-only",
    "piggyback",
    "lora 10%",
    "lora 10%, re-encoded as int4",
    "taps 10%",
    "taps-rank 1% int4",
    "taps-rank 5%",
    "taps-rank 10%",
)
README = Path("README.md")
MARK = re.compile(r"(<!-- benchmark -->\n).*?(<!-- /benchmark -->)", re.DOTALL)


def selected(found: Sequence[Row], size: str | None, epochs: int | None) -> list[Row]:
    """The rows of one size of the suite and one length of training; None for whichever the file has.

    Raises:
        ValueError: if it has several, with what to type.
    """
    rest = [row for row in found if size in (None, row.size) and epochs in (None, row.epochs)]
    kinds = Counter((row.size, row.epochs) for row in rest)
    if len(kinds) > 1:
        told = ", ".join(
            f"size {size} with {epochs} epochs ({count})" for (size, epochs), count in sorted(kinds.items())
        )
        most = kinds.most_common(1)[0][0]
        raise ValueError(
            f"Rows of different sizes or epochs do not go into one table: {told}. "
            f"Choose, such as --size {most[0]} --epochs {most[1]}."
        )
    return rest


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
    return f"{row.method}, re-encoded as {row.recoded}" if row.recoded else row.method


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
        behind: mean difference to full fine-tuning on the same task, backbone and seed; NaN without such runs.
        error: standard error of ``behind``, as if each task on each backbone were one measurement, the mean of its
            seeds; NaN for fewer than two.
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
    cells = _differences(done, reference)
    return Summary(
        runs=len(done),
        accuracy=mean(row.test for row in done if row.test is not None),
        behind=mean(cells) if cells else nan,
        error=stdev(cells) / sqrt(len(cells)) if len(cells) > 1 else nan,
        share=mean(row.share for row in done),
        seconds=mean(row.seconds for row in done),
    )


def _differences(some: Iterable[Row], reference: Iterable[Row]) -> list[float]:
    """Differences to the reference with the same seed: the mean over the seeds of each task and backbone."""
    other = {_run(row): row.test for row in reference}
    cells: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in some:
        against = other.get(_run(row))
        if row.test is not None and against is not None:
            cells[row.task, row.backbone].append(row.test - against)
    return [mean(differences) for differences in cells.values()]


def _run(row: Row) -> tuple[str, str, int]:
    return row.task, row.backbone, row.seed


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))


def has_untuned(found: Sequence[Row], unsearched: Sequence[Row]) -> bool:
    """Whether rows at the middle rates differ from those that count, and full fine-tuning has all its runs there."""
    wanted = _runs(_of(found, REFERENCE))
    complete = bool(wanted) and _runs(_of(unsearched, REFERENCE)) == wanted
    return complete and {row.key for row in unsearched} != {row.key for row in found}


def overview(found: Sequence[Row], unsearched: Sequence[Row] = (), only: Collection[str] = ()) -> str:
    """Every method over all tasks, backbones and seeds.

    Args:
        found: the rows that count.
        unsearched: rows at other learning rates, which get a column if they are others; methods that have not been run
            on all tasks, backbones and seeds have nothing in it.
        only: names of the methods to list; all of them if empty.
    """
    both = has_untuned(found, unsearched)
    columns = ["vs. full fine-tuning", *(["untuned rate"] if both else ())]
    lines = []
    for name in labels(found):
        if only and name not in only:
            continue
        made = summarise(_of(found, name), _of(found, REFERENCE))
        if made is None:
            lines.append([name, "0", *("" for _ in columns), "", "", ""])
            continue
        there = [made, _untuned(found, unsearched, name)] if both else [made]
        points = ["" if name == REFERENCE else _points(one) for one in there]
        rest = (f"{100 * made.share:.2f}", f"{made.seconds:.1f}")
        lines.append([name, str(made.runs), f"{100 * made.accuracy:.1f}", *points, *rest])
    return table(["method", "runs", "accuracy, %", *columns, "% of base bytes", "seconds"], lines)


def _untuned(found: Sequence[Row], unsearched: Sequence[Row], name: str) -> Summary | None:
    """A method at the middle rates; None if it lacks runs there."""
    some = _of(unsearched, name)
    return summarise(some, _of(unsearched, REFERENCE)) if _runs(some) == _runs(_of(found, name)) else None


def _points(made: Summary | None) -> str:
    """The difference to full fine-tuning, and its standard error, as far as they are known."""
    if made is None or isnan(made.behind):
        return ""
    return f"{100 * made.behind:+.1f}" + ("" if isnan(made.error) else f" ± {100 * made.error:.1f}")


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


def _runs(some: Iterable[Row]) -> set[tuple[str, str, int]]:
    return {_run(row) for row in some}


def _of(found: Iterable[Row], name: str) -> list[Row]:
    return [row for row in found if label(row) == name]


def commands(found: Sequence[Row], stem: str) -> str:
    """What to type for rows like those of a file of this name."""
    words = ["python -m benchmarks.suite.run"]
    words += ["--quick"] if stem == "quick" else []
    words += [f"--size {found[0].size}"] if found[0].size != "cpu" else []
    words += [f"--epochs {found[0].epochs}"] if found[0].epochs != EPOCHS else []
    once = " ".join(words)
    return f"`{once}`, then `{once} --no-search`" if has_untuned(finals(found), middles(found)) else f"`{once}`"


def page(found: Sequence[Row], stem: str) -> str:
    """The whole page in Markdown, for rows of the file of this name, all of one size and length of training."""
    last, unsearched = finals(found), middles(found)
    blocks = [
        "# Methods side by side",
        "<!-- Written by `python -m benchmarks.suite.tables`. -->",
        _facts(last, stem) + f" The command: {commands(found, stem)}.",
        "Accuracy is on test images, of the stored file read back. *Vs. full fine-tuning* is the mean difference to "
        "full fine-tuning on the same task, backbone and seed, in points, with its standard error. "
        + ("*Untuned rate* is the same, with everybody at the middle learning rate. " * has_untuned(last, unsearched))
        + "Bytes are those of the values stored, without the head's and without the text that names them.",
        "The standard error takes each task on each backbone for one measurement, the mean of its seeds "
        f"({len({(row.task, row.backbone) for row in last})} here): another seed is no other task, and its runs are "
        "no evidence of their own on how methods compare.",
        overview(last, unsearched),
        f"![Accuracy against bytes]({stem}-accuracy.svg)",
        "Bars are standard errors. A hollow mark is a result re-encoded after training.",
        "## By backbone",
        "In brackets what a task takes, in per cent of the base's bytes.",
        by(last, lambda row: row.backbone, shares=True),
        "## By task",
        by(last, lambda row: row.task, shares=False),
        f"## Which layers opened: {SHOWN}",
        "Norms, which every task has as its own, are left out.",
        f"![Layers opened, task by task]({stem}-layers.svg)",
        "## Learning rates",
        "The best of those that each method tried on a backbone, by validation accuracy."
        if len({(row.method, row.backbone, row.lr) for row in found}) > len(chosen(found))
        else "Each method has had one a backbone, the middle of its grid; no others were tried.",
        learning_rates(found),
    ]
    if missing := refused(last):
        blocks += ["## What could not be", missing]
    return "\n\n".join(blocks) + "\n"


def _facts(last: Sequence[Row], stem: str) -> str:
    """How many rows, when and on what."""
    dates = sorted(row.date for row in last)
    places = {(row.machine, row.device if row.device != "cpu" else "") for row in last}
    machines = sorted(", ".join(filter(None, place)) for place in places)
    return (
        f"{len(last)} rows of `{stem}.csv`, {dates[0][:10]} to {dates[-1][:10]}, on {' and '.join(machines)}; "
        f"torch {last[0].torch}, timm {last[0].timm}; {last[0].epochs} epochs a run."
    )


@dataclass(frozen=True)
class Series:
    """How the rows of a family are drawn: no two differ by hue alone."""

    colour: str
    marker: str
    line: str = ""
    hollow: bool = False


ORANGE, GREEN, BLUE, GREY = "#d55e00", "#009e73", "#0072b2", "#777777"
SERIES = {  # in the legend's order, which goes down its columns
    "taps-rank": Series(BLUE, "o", "-"),
    "taps-rank in int4": Series(BLUE, "*", "--"),
    "taps-rank, re-encoded": Series(BLUE, "o", hollow=True),
    "piggyback": Series("#000000", "P"),
    "taps, a budget": Series(GREEN, "D"),
    "taps, a penalty": Series(GREEN, "X"),
    "taps, re-encoded": Series(GREEN, "D", hollow=True),
    "lora": Series(ORANGE, "s"),
    "lora, re-encoded": Series(ORANGE, "s", hollow=True),
    "norm-only": Series("#000000", "_"),
    "first layers": Series(GREY, "<"),
    "last layers": Series(GREY, ">"),
}
UNKNOWN = Series(GREY, ".")


def accuracy_picture(found: Sequence[Row], path: Path) -> None:
    """Accuracy against bytes, one panel a backbone; full fine-tuning, and what stores nothing, as lines."""
    backbones = list(dict.fromkeys(row.backbone for row in found))
    size = (3.3 * len(backbones), 4.6)
    figure, panels = _pyplot().subplots(1, len(backbones), figsize=size, squeeze=False, sharey=True)
    handles: dict[str, Any] = {}
    for panel, backbone in zip(panels[0], backbones, strict=True):
        for label, handle in _draw(panel, [row for row in found if row.backbone == backbone]):
            handles.setdefault(label, handle)
        panel.axhline(0, color="black", linewidth=0.8)
        panel.set(title=backbone, xlabel="bytes a task, % of the base", xscale="log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("points vs. full fine-tuning")
    panels[0][0].set_yscale("symlog", linthresh=10)  # up to ten points as they are, more of them closer
    panels[0][0].set_yticks([5, 2, 0, -2, -5, -10, -20, -50], ["5", "2", "0", "-2", "-5", "-10", "-20", "-50"])
    order = [name for name in SERIES if name in handles] + [name for name in handles if name not in SERIES]
    figure.legend(
        [handles[name] for name in order], order, loc="outside lower center", ncols=max(1, len(panels[0]) + 1)
    )
    _save(figure, path)


def _draw(panel: Any, here: Sequence[Row]) -> Iterator[tuple[str, Any]]:
    """The rows of one backbone. Yields names for the legend, each with what it names."""
    families: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for name in labels(here):
        made = summarise(_of(here, name), _of(here, REFERENCE))
        if made is None or isnan(made.behind) or name == REFERENCE:
            continue
        if made.share == 0:
            yield f"{name}, nothing stored", panel.axhline(100 * made.behind, color=GREY, linestyle=":")
        else:
            error = 0.0 if isnan(made.error) else 100 * made.error
            families[_family(name)].append((100 * made.share, 100 * made.behind, error))
    for family, points in families.items():
        style = SERIES.get(family, UNKNOWN)
        shares, behind, errors = zip(*sorted(points), strict=True)
        yield (
            family,
            panel.errorbar(
                shares,
                behind,
                errors,
                color=style.colour,
                marker=style.marker,
                markerfacecolor="white" if style.hollow else style.colour,
                linestyle=style.line,
                linewidth=1.2,
                elinewidth=0.8,
                markersize=8 if style.marker in "*_" else 5.5,
            ),
        )


def _family(name: str) -> str:
    """Rows that are drawn as one series."""
    if ", re-encoded" in name:
        return f"{name.split()[0]}, re-encoded"
    if name.startswith("taps penalty"):
        return "taps, a penalty"
    if name.startswith("taps-rank"):
        return "taps-rank in int4" if "int4" in name else "taps-rank"
    if name.startswith("taps"):
        return "taps, a budget"
    if name.startswith(("first ", "last ")):
        return f"{name.split()[0]} layers"
    return name.rpartition(" ")[0] if name.endswith("%") else name


def layers_picture(found: Sequence[Row], path: Path) -> None:
    """How often each layer opened, task by task, one panel a backbone."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    backbones = list(dict.fromkeys(row.backbone for row in found))
    tasks = list(dict.fromkeys(row.task for row in found))
    size = (8, 0.6 + 1.8 * len(backbones))
    figure, panels = _pyplot().subplots(len(backbones), 1, figsize=size, squeeze=False)
    for panel, backbone in zip(panels[:, 0], backbones, strict=True):
        here = [row for row in found if row.backbone == backbone and row.test is not None]
        every = next((row.open.split() for row in here if row.method == REFERENCE), [])
        drawn = panel.imshow(_often(here, tasks, every), aspect="auto", cmap="Greens", vmin=0, vmax=1)
        panel.vlines([place + 0.5 for place in range(len(every) - 1)], -0.5, len(tasks) - 0.5, "white", linewidth=1)
        panel.hlines([place + 0.5 for place in range(len(tasks) - 1)], -0.5, len(every) - 0.5, "white", linewidth=1)
        panel.set_yticks(range(len(tasks)), tasks)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.tick_params(length=0)
        panel.set_title(f"{backbone}: {len(every)} layers, from the stem to the last")
    figure.colorbar(drawn, ax=panels, format=PercentFormatter(1), label="seeds whose task stores the layer", aspect=40)
    _save(figure, path)


def _often(here: Sequence[Row], tasks: Sequence[str], layers: Sequence[str]) -> list[list[float]]:
    """The share of a task's runs in which a layer opened, ``[task][layer]``; NaN without runs."""
    runs = {task: [row.open.split() for row in _of(here, SHOWN) if row.task == task] for task in tasks}
    return [
        [mean(layer in opened for opened in runs[task]) if runs[task] else nan for layer in layers] for task in tasks
    ]


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


def main(words: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite.tables", description="Tables and pictures.")
    parser.add_argument("--csv", type=Path, help="rows that the runs left (default: those of the size)")
    parser.add_argument("--size", choices=SIZES, help="rows of this size of the suite only")
    parser.add_argument("--epochs", type=int, help="rows of runs of this length only")
    parser.add_argument("--readme", action="store_true", help="put a short table into README.md as well")
    given = parser.parse_args(words)
    csv = given.csv or default_csv(given.size or "cpu")
    try:
        found = ordered(selected(rows.read(csv), given.size, given.epochs))
    except ValueError as error:
        print(f"{csv}: {error}", file=sys.stderr)
        return 1
    if not finals(found):
        print(f"{csv} has no rows to show. First: python -m benchmarks.suite.run", file=sys.stderr)
        return 1
    folder = csv.parent
    (folder / f"{csv.stem}.md").write_text(page(found, csv.stem), "utf-8")
    accuracy_picture(finals(found), folder / f"{csv.stem}-accuracy.svg")
    layers_picture(finals(found), folder / f"{csv.stem}-layers.svg")
    if given.readme:
        README.write_text(filled(README.read_text("utf-8"), overview(finals(found), middles(found), BRIEF)), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
