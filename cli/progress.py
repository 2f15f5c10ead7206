"""Shows a task being added: bars on a terminal, a line an epoch elsewhere. On standard error either way."""

from __future__ import annotations

import sys

from ..registry.training.progress import EpochResult, Progress, Step
from .output import counted, percent, say, size
from .terminal import printable


def make_progress() -> Progress:
    """Bars if someone is watching, else lines."""
    return BarProgress() if sys.stderr.isatty() else LineProgress()


def epoch_line(result: EpochResult) -> str:
    """What one epoch came to."""
    return (
        f"epoch {result.epoch}/{result.epochs}  loss {result.loss:.3f}  accuracy {percent(result.accuracy)}  "
        f"validation {percent(result.val_accuracy)}  open {result.open_layers}/{result.layers}  "
        f"{percent(result.share_of_base)} of the parameters  {size(result.bytes)}{'  *' if result.best else ''}"
    )


class LineProgress(Progress):
    """For files and pipes."""

    def __init__(self) -> None:
        self.checked = False

    def checking(self, done: int, total: int) -> None:
        if not self.checked:
            self.checked = True
            say(f"Checking {counted(total, 'image')} ...")

    def epoch(self, result: EpochResult) -> None:
        say(epoch_line(result))

    def note(self, text: str) -> None:
        say(f"Note: {text}")


class BarProgress(Progress):
    """For terminals: a bar over the images, then one over the steps, with what an epoch came to above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[state]}"),
            console=Console(stderr=True, highlight=False),
            transient=True,
        )
        self.images = self.bars.add_task("checking images", total=None, state="", visible=False)
        self.steps = self.bars.add_task("training", total=None, state="", visible=False)
        self.bars.start()

    def checking(self, done: int, total: int) -> None:
        self.bars.update(self.images, completed=done, total=total, visible=done < total)

    def step(self, step: Step) -> None:
        self.bars.update(
            self.steps,
            description=f"epoch {step.epoch}/{step.epochs}",
            completed=(step.epoch - 1) * step.steps + step.step,
            total=step.epochs * step.steps,
            visible=True,
            state=f"loss {step.loss:.3f}  acc {percent(step.accuracy)}  open {step.open_layers}/{step.layers}",
        )

    def epoch(self, result: EpochResult) -> None:
        self.bars.console.print(epoch_line(result), markup=False)

    def note(self, text: str) -> None:
        self.bars.console.print(printable(f"Note: {text}"), markup=False)

    def close(self) -> None:
        self.bars.stop()
