"""Tables and pictures from the rows of the suite: ``python -m benchmarks.suite.tables``.

Writes ``suite.md`` and two pictures beside ``suite.csv``, and with ``--readme`` a short table into README.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from math import isnan
from pathlib import Path
from statistics import mean

from . import pictures, rows
from .contenders import CONTENDERS
from .rows import Row
from .run import EPOCHS, chosen, default_csv
from .summaries import REFERENCE, Summary, finals, labels, middles, named, ordered, run_of, selected, summarise
from .tasks import SIZES

BRIEF = (  # the rows of README.md
    REFERENCE,
    "head-only",
    "norm-only",
    "piggyback",
    "lora 1% int4",
    "lora 5%",
    "lora 10%",
    "taps 10%",
    "taps-rank 1% int4",
    "taps-rank 5%",
    "taps-rank 10%",
)
RIVALS = (  # who is compared with whom, at about the same bytes where there is such a one
    ("taps-rank 10%", "lora 10%"),
    ("taps-rank 5%", "lora 5%"),
    ("taps-rank 10%, re-encoded as int4", "lora 10%, re-encoded as int4"),
    ("taps-rank 1% int4", "lora 10%, re-encoded as int4"),
    ("taps-rank 1% int4", "lora 1% int4"),
    ("taps-rank 1% int4", "lora 1%"),
    ("taps-rank 1% int4", "norm-only"),
    ("taps-rank 2%", "norm-only"),
    ("taps-rank 2% int4", "piggyback"),
    ("taps-rank 10%", "first 10%"),
    ("taps-rank 20%", "first 25%"),
    ("taps-rank 20%", "last 25%"),
    *((name, REFERENCE) for name in ("taps-rank 1% int4", "taps-rank 2%", "taps-rank 5%", "taps-rank 10%")),
)
README = Path("README.md")
MARK = re.compile(r"(<!-- benchmark -->\n).*?(<!-- /benchmark -->)", re.DOTALL)


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))


def has_untuned(found: Sequence[Row], unsearched: Sequence[Row]) -> bool:
    """Whether rows at the middle rates differ from those that count, and full fine-tuning has all its runs there."""
    wanted = _runs(named(found, REFERENCE))
    complete = bool(wanted) and _runs(named(unsearched, REFERENCE)) == wanted
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
        made = summarise(named(found, name), named(found, REFERENCE))
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
    some = named(unsearched, name)
    return summarise(some, named(unsearched, REFERENCE)) if _runs(some) == _runs(named(found, name)) else None


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
            made = summarise([row for row in named(found, name) if column(row) == value], [])
            size = f" ({100 * made.share:.1f} %)" if made and shares else ""
            cells.append(f"{100 * made.accuracy:.1f}{size}" if made else "—")
        lines.append(cells)
    return table(["method", *values], lines)


def head_to_head(found: Sequence[Row], pairs: Iterable[tuple[str, str]] = RIVALS) -> str:
    """Differences between two methods in points, with a column for each backbone and one for all of them.

    Args:
        found: the rows that count.
        pairs: names of methods; those of which one has no rows are left out.
    """
    backbones = list(dict.fromkeys(row.backbone for row in found))
    lines = []
    for one, other in pairs:
        both = named(found, one), named(found, other)
        if not all(both):
            continue
        here = [[[row for row in some if row.backbone == backbone] for some in both] for backbone in backbones]
        made = [summarise(some, reference) for some, reference in [*here, both]]
        shares = " / ".join(f"{100 * mean(row.share for row in some):.1f}" for some in both)
        lines.append([one, other, shares, *(_points(difference) or "—" for difference in made)])
    return table(["method", "against", "% of base bytes", *backbones, "all"], lines)


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
    return {run_of(row) for row in some}


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
        "## Head to head",
        "By how many points of test accuracy a method is ahead of another, of the same seed, with the standard error "
        "over pairs of task and backbone. Bytes are those of the one and of the other.",
        head_to_head(last),
        "## By task",
        by(last, lambda row: row.task, shares=False),
        f"## Which layers opened: {pictures.SHOWN}",
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
    pictures.accuracy(finals(found), folder / f"{csv.stem}-accuracy.svg")
    pictures.layers(finals(found), folder / f"{csv.stem}-layers.svg")
    if given.readme:
        README.write_text(filled(README.read_text("utf-8"), overview(finals(found), middles(found), BRIEF)), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
