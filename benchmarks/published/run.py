"""Runs a protocol of the paper on your data: ``python -m benchmarks.published.run PROTOCOL --data DIR --pretrained``.

``DIR/TASK/train/CLASS/`` and ``DIR/TASK/test/CLASS/`` hold the images (``val`` for the decathlon); validation images
are taken from those for training. Interrupted, the same command goes on. At the end comes the paper's table beside
ours.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from taps_registry import Registry, TapsError
from taps_registry.cli.progress import make_progress

from .layout import differences, problems
from .protocols import PROTOCOLS, Dataset, Protocol

BASE = "base"
METHODS: dict[str, dict[str, Any]] = {
    "fine-tuning": {"method": "full"},
    "head only": {"method": "head-only"},
    "head and norms": {"method": "norm-only"},
    "Piggyback": {"method": "piggyback"},
    "TAPS": {"method": "taps", "penalty": "uniform"},  # the paper's penalty, not our default
    "TAPS, budget 10%": {"budget": "10%"},
    "TAPS, budget 1% in int4": {"budget": "1%", "encoding": "int4"},
}


def add_base(registry: Registry, protocol: Protocol, weights: Path | None, model: str) -> None:
    """Add the backbone, unless an earlier run did."""
    if BASE not in {base.name for base in registry.bases()}:
        registry.add_base(BASE, model or protocol.model, weights=weights, pretrained=weights is None)


def task_name(task: Dataset, method: str) -> str:
    """The registry's name of a task trained with a method."""
    return f"{task.name}-{re.sub('[^a-z0-9]+', '-', method.lower()).strip('-')}"


def train(registry: Registry, protocol: Protocol, data: Path, methods: Sequence[str], settings: dict[str, Any]) -> None:
    """Train what is not there yet, and go on with what was interrupted."""
    for task in protocol.tasks:
        for method in methods:
            name = task_name(task, method)
            states = {known.name: known.state for known in registry.tasks()}
            progress = make_progress()
            try:
                if name not in states:
                    folder = data / task.name
                    where = {"test_data": str(folder / protocol.tested_on), **settings, **METHODS[method]}
                    registry.add_task(name, BASE, folder / "train", progress=progress, **where)
                elif states[name] == "training":
                    registry.resume_task(name, progress=progress)
            finally:
                progress.close()


def table(registry: Registry, protocol: Protocol, methods: Sequence[str]) -> str:
    """The paper's rows beside ours, in Markdown. Multiples are base and tasks together over the base alone."""
    names = [task.name for task in protocol.tasks]
    lines = [["", *names, "mean", "parameters, times the base", "bytes, times the base"]]
    lines.append(["---", *("---:" for _ in lines[0][1:])])
    for row in protocol.published:
        known = row.accuracy
        average = known.get("mean", mean(known.values()))
        cells = [f"{known[name]:.2f}" if name in known else "" for name in names]
        lines.append(
            [f"{row.method}, paper", *cells, f"{average:.2f}", f"{row.multiple:g}" if row.multiple else "", ""]
        )
    for method in methods:
        mine = [task_name(task, method) for task in protocol.tasks]
        reached = [100 * registry.task(name).metrics["test/accuracy"] for name in mine]
        total = registry.cost(mine).bases[0].total
        figures = (*reached, mean(reached), total.multiple, total.multiple_of_bytes)
        lines.append([f"{method}, here", *(f"{figure:.2f}" for figure in figures)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(words: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    given = _options().parse_args(words)
    protocol = PROTOCOLS[given.protocol]
    wrong = list(problems(protocol, given.data))
    if wrong:
        print("\n".join([*wrong, f"Then type the same again. {protocol.title} needs all of it."]), file=sys.stderr)
        return 1
    for note in differences(protocol, given.data):
        print(f"Not as published: {note}", file=sys.stderr)
    settings = {"epochs": given.epochs, "lr": given.lr, "batch_size": given.batch_size, "seed": given.seed}
    settings |= {"device": given.device, "augment": given.augment, "tracker": given.tracker}
    try:
        with Registry.init(given.home) as registry:
            add_base(registry, protocol, given.weights, given.model)
            train(registry, protocol, given.data, given.methods, settings)
            print(f"\n{protocol.title}, test accuracy in per cent, {given.epochs} epochs\n")
            print(table(registry, protocol, given.methods))
    except TapsError as error:
        print(f"{error}\nThe same command goes on.", file=sys.stderr)
        return error.exit_code
    print("\nThe paper's figures are recalled, not copied from it. " + protocol.remark)
    return 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.published.run", description="A protocol of the paper, on your data."
    )
    parser.add_argument("protocol", choices=PROTOCOLS)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each task")
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--weights", type=Path, help="file of the backbone's weights")
    weights.add_argument("--pretrained", action="store_true", help="timm's weights, from the hub or its cache")
    parser.add_argument("--model", default="", help="another backbone than the paper's, by timm's name")
    parser.add_argument("--home", type=Path, default=Path("published/.taps"), help="the registry's folder")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="NAME")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--lr", type=float, help="learning rate (default: the backbone's own)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--augment", default="standard", help="none, light or standard")
    parser.add_argument("--tracker", default="csv")
    return parser


if __name__ == "__main__":
    sys.exit(main())
