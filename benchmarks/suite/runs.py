"""One run of the suite, in a process of its own registry: a task added, measured, written down and removed again."""

from __future__ import annotations

import functools
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from taps_registry import Registry
from taps_registry.registry.errors import TapsError
from taps_registry.registry.records import Base, Task
from taps_registry.registry.store.artifact import read_header, tensor_bytes
from taps_registry.registry.store.header import HEAD
from taps_registry.registry.store.objects import ObjectStore

from ..conditions import conditions
from .contenders import Contender
from .rows import Row
from .tasks import SIZES

TRAINING: dict[str, Any] = {"batch_size": 32, "augment": "none", "workers": 0, "tracker": "none"}
FLOAT = 4  # bytes of a head's value


@dataclass(frozen=True)
class Job:
    """One run that is to be.

    Attributes:
        data: folder that ``make`` wrote.
        lr: learning rate.
        device: to train on.
    """

    data: Path
    size: str
    task: str
    backbone: str
    seed: int
    contender: Contender
    lr: float
    epochs: int
    device: str = "cpu"

    def row(self) -> Row:
        """Its row before anything is known."""
        return Row(
            task=self.task,
            backbone=self.backbone,
            seed=self.seed,
            method=self.contender.name,
            budget=self.contender.budget,
            encoding=self.contender.encoding,
            lr=printed(self.lr),
            epochs=self.epochs,
            size=self.size,
        )

    @property
    def images(self) -> Path:
        return self.data / "images" / self.task

    @property
    def settings(self) -> dict[str, Any]:
        """Of ``Registry.add_task``, a rank that is to be chosen left out."""
        return {
            **TRAINING,
            "lr": self.lr,
            "epochs": self.epochs,
            "seed": self.seed,
            "device": self.device,
            **self.contender.settings,
        }


def printed(lr: float) -> str:
    """A learning rate as rows have it."""
    return f"{lr:.2g}"


_homes: list[Registry] = []
_ranks: dict[tuple[str, str, str], int] = {}  # by size, backbone and contender: the same for every task


def prepare(folder: str) -> None:
    """Make the process ready for runs: one thread, deaf to Ctrl-C (its parent is not), a registry below ``folder``."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _homes[:] = [Registry.init(Path(tempfile.mkdtemp(dir=folder)) / "registry")]


def carry_out(job: Job) -> list[Row]:
    """The rows of a run: one, and one for each encoding that its result is stored in once more.

    A task that cannot be, such as one whose norms alone are above its budget, gives a row with the reason.
    """
    home = _homes[0]
    base = _base(home, job)
    row = replace(job.row(), rank=_rank(home, job, base), **circumstances(job.device))
    settings = job.settings | ({} if row.rank is None else {"rank": row.rank})
    began = time.perf_counter()
    try:
        task = home.add_task("task", job.backbone, job.images, **settings)
    except TapsError as error:
        return [replace(row, note=" ".join(str(error).split())[:300])]
    finally:
        seconds = time.perf_counter() - began
        _forget(home, "task", keep=True)
    try:
        first = described(replace(row, seconds=round(seconds, 2)), task, base, home)
        return [first, *_recoded(home, row, job.contender.recoded, base)]
    finally:
        _forget(home, "task")


def _base(home: Registry, job: Job) -> Base:
    """The backbone's record; the backbone is added for the first run on it."""
    from .bases import add, backbones

    add(home, backbones(job.size)[job.backbone], job.data / "bases" / f"{job.backbone}.safetensors", SIZES[job.size])
    return home.base(job.backbone)


def _forget(home: Registry, name: str, *, keep: bool = False) -> None:
    """Remove a task, or with ``keep`` only one that did not get ready."""
    for task in home.tasks():
        if task.name == name and not (keep and task.state == "ready"):
            home.remove(name)
            home.gc()


def _rank(home: Registry, job: Job, base: Base) -> int | None:
    """The rank that a contender's share comes to, looked for once in each process; None without a share."""
    if job.contender.share is None:
        return None
    which = (job.size, job.backbone, job.contender.name)
    if which not in _ranks:
        _ranks[which] = fitting_rank(home, job, base)
    return _ranks[which]


def fitting_rank(home: Registry, job: Job, base: Base) -> int:
    """The rank at which a task takes about the share that the contender names, and at most that if 1 is not too much.

    A task's bytes grow by the same amount with each rank, as long as no layer's factors outgrow its weight.
    """
    allowed = (job.contender.share or 0.0) * backbone_bytes(base)

    def size(rank: int) -> float:
        told = {**job.settings, "rank": rank}
        most = home.estimate("task", job.backbone, job.images, **told).most
        return most.bytes - FLOAT * most.params.head

    low, high = 1, 2
    while size(high) <= allowed:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= allowed else (low, middle)
    return low


def backbone_bytes(base: Base) -> int:
    """What shares are shares of, as those of ``--budget``: the base's parameters in float32, its classifier apart."""
    return FLOAT * base.backbone_params


def values_apart(home: Registry, digest: str) -> tuple[int, int]:
    """Bytes of an artifact's values: all of them, and those that are not the head's."""
    path = ObjectStore(home.home / "objects").get(digest)
    parts = {name: entry.part for name, entry in read_header(path).tensors.items()}
    sizes = tensor_bytes(path)
    return sum(sizes.values()), sum(size for name, size in sizes.items() if parts[name] != HEAD)


def described(row: Row, task: Task, base: Base, home: Registry) -> Row:
    """A row completed from a task as the catalog has it."""
    values, apart = values_apart(home, task.digest)
    return replace(
        row,
        encoding=task.encoding,
        val=task.metrics["val/accuracy"],
        test=task.metrics["test/accuracy"],
        weights=task.params.weights,
        norms=task.params.norms,
        head=task.params.head,
        bytes=task.bytes,
        header=task.bytes - values,
        apart=apart,
        share=apart / backbone_bytes(base),
        open=" ".join(layer.name for layer in task.layers if layer.open and layer.kind != "norm"),
        date=_now(),
    )


def _recoded(home: Registry, row: Row, encodings: Iterable[str], base: Base) -> Iterator[Row]:
    """The finished task in other encodings, each from what was trained and not from the one before."""
    for encoding in encodings:
        with tempfile.TemporaryDirectory(dir=home.home.parent) as folder:
            copied = shutil.copytree(home.home, Path(folder) / "registry")
            with Registry.open(copied) as copy:
                began = time.perf_counter()
                task = copy.recode("task", encoding)
                seconds = round(time.perf_counter() - began, 2)
                yield described(replace(row, recoded=encoding, seconds=seconds), task, base, copy)


@functools.cache
def _place() -> dict[str, str]:
    found = conditions(("torch", "timm"))
    machine = f"{found['machine']['cores']} x {found['machine']['processor']}"
    return {"commit": _commit(), "machine": machine, **{name: found["versions"][name] for name in ("torch", "timm")}}


def circumstances(device: str) -> dict[str, str]:
    """When and on what: columns of a row."""
    return {**_place(), "device": device_name(device), "date": _now()}


def device_name(device: str) -> str:
    """The model of a CUDA device; others are called as they are asked for."""
    import torch

    if device == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        device = "cpu" if found is None else found.type
    return torch.cuda.get_device_name(device) if device.startswith("cuda") and torch.cuda.is_available() else device


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _commit() -> str:
    """The commit of the code, with ``+`` if files have changed since; empty outside of git."""
    here = Path(__file__).parent
    try:
        said = [
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603, S607
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said[0] + ("+" if said[1] else "")
