"""Runs the suite: ``python -m benchmarks.suite.run``. Stop it with Ctrl-C; the same command goes on.

First everybody looks for a learning rate: on all tasks and one seed, three rates each, by accuracy on validation
images. Then everybody trains on the other seeds at the rate found for the backbone. Rows go into one CSV file as they
finish; what has a row there is not run again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from . import make, rows, runs
from .contenders import CONTENDERS, GRID, Contender
from .rows import Row
from .runs import Job
from .tasks import SIZES, TASKS

QUICK_TASKS = ("greek", "textures")
SEARCH_SEED = 0
RATES = {"resnet34": 6e-3, "densenet": 4e-3, "vit": 2e-3}
EPOCHS = 8
RESULTS = Path("benchmarks/results")


def default_csv(size: str, *, quick: bool = False) -> Path:
    """The file of rows unless another is named: one for each size, since tables do not mix them."""
    return RESULTS / ("quick.csv" if quick else "suite.csv" if size == "cpu" else f"suite-{size}.csv")


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
        data: folder that ``make`` fills.
        search: whether learning rates are looked for; otherwise everybody takes the middle of the grid.
    """

    data: Path
    size: str
    tasks: Sequence[str]
    backbones: Sequence[str]
    seeds: Sequence[int]
    contenders: Sequence[Contender]
    epochs: int
    search: bool = True
    device: str = "cpu"

    def searches(self) -> Iterator[Job]:
        """The runs that learning rates are chosen by."""
        for contender in self.contenders if self.search else ():
            for backbone in self.backbones:
                for rate in rates(contender, backbone):
                    for task in self.tasks:
                        yield self._job(task, backbone, SEARCH_SEED, contender, rate)

    def finals(self, found: Iterable[Row]) -> Iterator[Job]:
        """The runs that count, at the learning rates that finished runs speak for; seed by seed."""
        best = chosen(row for row in found if (row.epochs, row.size) == (self.epochs, self.size)) if self.search else {}
        for seed in self.seeds:
            for task in self.tasks:
                for backbone in self.backbones:
                    for contender in self.contenders:
                        rate = float(best.get((contender.name, backbone), middle(contender, backbone)))
                        yield self._job(task, backbone, seed, contender, rate)

    def _job(self, task: str, backbone: str, seed: int, contender: Contender, rate: float) -> Job:
        return Job(self.data / self.size, self.size, task, backbone, seed, contender, rate, self.epochs, self.device)


def rates(contender: Contender, backbone: str) -> list[float]:
    """The learning rates that a contender tries on a backbone, of two digits each."""
    return [float(runs.printed(RATES[backbone] * contender.pace * step)) for step in GRID]


def middle(contender: Contender, backbone: str) -> str:
    """The learning rate of a contender that does not search, as printed."""
    return runs.printed(rates(contender, backbone)[len(GRID) // 2])


def chosen(found: Iterable[Row]) -> dict[tuple[str, str], str]:
    """The learning rate of each method and backbone, as printed: the best mean accuracy on validation images.

    Args:
        found: rows of one length of training and one size of the suite. Only those of the search count, and of the
            test images they know nothing. A rate that was tried on fewer tasks than another is not chosen.
    """
    scores: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in found:
        if row.seed == SEARCH_SEED and not row.recoded and row.val is not None:
            scores[row.method, row.backbone][row.lr].append(row.val)
    return {
        who: max(by_rate, key=lambda rate: (len(by_rate[rate]), mean(by_rate[rate]), -float(rate)))
        for who, by_rate in scores.items()
    }


def missing(jobs: Iterable[Job], found: Iterable[Row]) -> list[Job]:
    """The jobs that have no row yet, each once; a finished run has a row for each of its encodings."""
    there = {row.key for row in found}
    left: dict[rows.Key, Job] = {}
    for job in jobs:
        if job.row().key not in there:
            left.setdefault(job.row().key, job)
    return list(left.values())


def run(plan: Plan, csv: Path, workers: int) -> None:
    """Carry out what is missing of a plan, first its searches, then its finals.

    Raises:
        KeyboardInterrupt: on Ctrl-C, after the processes have been stopped; finished runs have their rows.
    """
    make.make(plan.data, plan.size, tasks=plan.tasks, bases=plan.backbones, device=plan.device)
    carry_out(missing(plan.searches(), rows.read(csv)), csv, workers, "Looking for learning rates")
    carry_out(missing(plan.finals(rows.read(csv)), rows.read(csv)), csv, workers, "Comparing")


def carry_out(jobs: Sequence[Job], csv: Path, workers: int, title: str) -> None:
    """Run jobs in processes and append their rows as they come."""
    if not jobs:
        return
    print(f"{title}: {len(jobs)} runs, {workers} at a time.", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), runs.prepare, (folder,))
        try:
            futures = {pool.submit(runs.carry_out, job): job for job in jobs}
            for done, future in enumerate(as_completed(futures), 1):
                made = future.result()
                rows.append(csv, made)
                left = (time.monotonic() - began) / done * (len(jobs) - done)
                print(f"{done}/{len(jobs)}  {summary(made[0])}  {left / 60:.0f} min left", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        pool.shutdown()


def summary(row: Row) -> str:
    """A line about a run."""
    what = f"{row.task:10} {row.backbone:9} seed {row.seed}  {row.method:14} lr {row.lr:8}"
    if row.test is None:
        return f"{what} {row.note[:70]}"
    return f"{what} test {100 * row.test:5.1f} %  {100 * row.share:6.2f} % of the base  {row.seconds:4.1f} s"


def main() -> int:
    """The command line. Returns the exit code."""
    chosen = _options().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends it, its processes end as well
    plan = Plan(
        data=chosen.data,
        size=chosen.size,
        tasks=chosen.tasks,
        backbones=chosen.backbones,
        seeds=range(chosen.seeds),
        contenders=[CONTENDERS[name] for name in chosen.methods],
        epochs=chosen.epochs,
        search=not chosen.no_search,
        device=chosen.device,
    )
    csv = chosen.csv or default_csv(chosen.size, quick=chosen.quick)
    try:
        run(plan, csv, chosen.workers)
    except KeyboardInterrupt:
        print(f"\nStopped. What has finished is in {csv}; the same command goes on.", file=sys.stderr)
        return 130
    print(f"All runs are in {csv}. Tables and pictures: python -m benchmarks.suite.tables --csv {csv}")
    return 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite.run", description="Methods side by side.")
    quick = "--quick" in sys.argv
    parser.add_argument("--quick", action="store_true", help="one seed, two tasks, the ResNet, no search for rates")
    parser.add_argument("--no-search", action="store_true", default=quick, help="take the middle of each grid of rates")
    parser.add_argument("--data", type=Path, default=make.DEFAULT, help="folder of images and backbones")
    parser.add_argument(
        "--csv", type=Path, help="rows (default: quick.csv, suite.csv or suite-SIZE.csv in the results)"
    )
    parser.add_argument("--size", choices=SIZES, default="cpu", help="how much and how large (default: cpu)")
    parser.add_argument("--device", default="cpu", help="to train on (default: cpu)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time (default: cores)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"of every run (default: {EPOCHS})")
    parser.add_argument("--seeds", type=int, default=1 if quick else 3, help="how many (default: 3)")
    for name, known, default in (
        ("tasks", TASKS, QUICK_TASKS if quick else TASKS),
        ("backbones", RATES, ("resnet34",) if quick else RATES),
        ("methods", CONTENDERS, CONTENDERS),
    ):
        parser.add_argument(f"--{name}", nargs="+", choices=list(known), default=list(default), metavar="NAME")
    return parser


if __name__ == "__main__":
    sys.exit(main())
