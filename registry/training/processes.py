"""Training in one process or in several, one a device; this process is always the first of them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess

import torch.distributed
import torch.multiprocessing

from ..errors import TrainingError
from .allocator import kept_memory
from .job import Job, Outcome
from .loop import Trainer
from .progress import EpochResult, Progress


def train(job: Job, progress: Progress, after_epoch: Callable[[EpochResult], None]) -> Outcome:
    """Train from the checkpoint in the job's folder, or from the start.

    Raises:
        TrainingError: on a loss that is not finite, or when another process of the run dies.
    """
    with kept_memory(), _companions(job) as others:
        trainer = Trainer(job, progress, after_epoch)
        trainer.restore()
        try:
            return trainer.run()
        except RuntimeError as error:
            dead = [process.name for process in others if process.exitcode]
            if dead:
                raise TrainingError(f"Training processes died: {', '.join(dead)}. Their output tells why.") from error
            raise


@contextmanager
def _companions(job: Job) -> Iterator[list[SpawnProcess]]:
    """The other processes, which know no catalog, no tracker and no terminal; they end with the block."""
    count = job.settings.processes
    if count == 1:
        yield []
        return
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
    spawn = torch.multiprocessing.get_context("spawn")
    others = [
        spawn.Process(target=_companion, args=(job, _environment(address, rank)), name=f"rank {rank}", daemon=True)
        for rank in range(1, count)
    ]
    for process in others:
        process.start()
    saved = dict(os.environ)
    os.environ.update(_environment(address, 0))
    try:
        yield others
        for process in others:
            process.join(timeout=60)
    finally:
        for process in others:
            process.kill()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(saved)


def _environment(address: Mapping[str, str], rank: int) -> dict[str, str]:
    return {**address, "RANK": str(rank), "LOCAL_RANK": str(rank)}


def _companion(job: Job, environment: Mapping[str, str]) -> None:
    """What another process runs: the same training, saying nothing."""
    os.environ.update(environment)
    with kept_memory():
        trainer = Trainer(job, Progress(), lambda result: None)
        trainer.restore()
        trainer.run()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
