"""Training in one process or in several, one a device; this process is always the first of them."""

from __future__ import annotations

import copy
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Semaphore

import torch.distributed

from ..data.workers import WHAT_TO_DO, WorkersDiedError, deaths_explained
from ..errors import TrainingError
from .allocator import kept_memory
from .job import Job, Outcome
from .loop import Trainer
from .progress import EpochResult, Progress

DYING = 10.0  # seconds that a process which has closed its connections may take to end
LOADERS_DIED = 75  # exit code of a companion whose loader processes died


def train(job: Job, progress: Progress, after_epoch: Callable[[EpochResult], None]) -> Outcome:
    """Train from the checkpoint in the job's folder, or from the start.

    Raises:
        TrainingError: on a loss that is not finite, or when another process of the run dies.
    """
    with kept_memory(), _companions(job) as others:
        try:
            return _run(job, progress, after_epoch)
        except RuntimeError as error:
            _require_alive(others, error)
            raise


def _run(job: Job, progress: Progress, after_epoch: Callable[[EpochResult], None]) -> Outcome:
    with deaths_explained():
        trainer = Trainer(job, progress, after_epoch)
        trainer.restore()
        return trainer.run()


def _require_alive(others: Sequence[SpawnProcess], error: RuntimeError) -> None:
    """Raises TrainingError if another process has died, which this one may have noticed before the system did."""
    last = time.monotonic() + DYING
    while others and time.monotonic() < last and not any(process.exitcode for process in others):
        time.sleep(0.1)
    dead = [process for process in others if process.exitcode]
    if any(process.exitcode == LOADERS_DIED for process in dead):
        raise WorkersDiedError(f"A process that loads images died; the output above tells why. {WHAT_TO_DO}") from error
    if dead:
        names = ", ".join(process.name for process in dead)
        raise TrainingError(f"Training processes died: {names}. Their output tells why.") from error


@contextmanager
def _companions(job: Job) -> Iterator[list[SpawnProcess]]:
    """The other processes, which know no catalog, no tracker and no terminal; they end with the block."""
    count = job.settings.processes
    if count == 1:
        yield []
        return
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
    spawn = multiprocessing.get_context("spawn")
    begun = spawn.Semaphore(0)
    others = [
        spawn.Process(target=_companion, args=(job, begun, _environment(address, rank)), name=f"rank {rank}")
        for rank in range(1, count)
    ]
    saved = dict(os.environ)
    try:
        for process in others:
            process.start()  # no daemon, which could have no processes that load images; they are killed below
        _wait_for(others, begun)
        os.environ.update(_environment(address, 0))
        yield others
        for process in others:
            process.join(timeout=60)
    finally:
        for process in others:
            if process.pid is not None:
                process.kill()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(saved)


def _wait_for(others: Sequence[SpawnProcess], begun: Semaphore) -> None:
    """Return once all have begun: one that never comes would be waited for for half an hour.

    Raises:
        TrainingError: if one of them dies instead.
    """
    for _ in others:
        while not begun.acquire(timeout=0.1):
            if dead := [process.name for process in others if process.exitcode is not None]:
                raise TrainingError(
                    f"Training processes died before they began: {', '.join(dead)}. Their output tells why; a script "
                    'that trains with --processes needs `if __name__ == "__main__":` around what it does.'
                )


def _environment(address: Mapping[str, str], rank: int) -> dict[str, str]:
    return {**address, "RANK": str(rank), "LOCAL_RANK": str(rank)}


def _companion(job: Job, begun: Semaphore, environment: Mapping[str, str]) -> None:
    """What another process runs: the same training, saying nothing.

    Args:
        job: of the run. The model in it lies in memory that all processes share: torch hands tensors over that way.
        begun: is told once this process has a model of its own. On a CPU, each would train the others' weights.
        environment: of torch's process group.
    """
    # A process that was spawned spawns: those that load its images would import torch anew, after each epoch again.
    multiprocessing.set_start_method(None, force=True)
    job_here = replace(job, model=copy.deepcopy(job.model))
    begun.release()
    os.environ.update(environment)
    with kept_memory():
        try:
            _run(job_here, Progress(), lambda result: None)
        except WorkersDiedError as error:
            print(error, file=sys.stderr)
            sys.exit(LOADERS_DIED)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
