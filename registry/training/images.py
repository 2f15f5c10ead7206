"""Batches of a task's images, the same ones under the same seed however many workers load them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..models.transforms import Transform
from .sources import Sample


class Images(Dataset[tuple[Tensor, int]]):
    """Samples through a transform whose random choices depend on seed, epoch and index alone.

    Args:
        samples: labelled images.
        transform: PIL image to ``(C, H, W)`` float32.
        seed: of its random choices.
    """

    def __init__(self, samples: Sequence[Sample], transform: Transform, seed: int = 0) -> None:
        self.samples = samples
        self.transform = transform
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sample = self.samples[index]
        with seeded(mixed(self.seed, self.epoch, index)):
            return self.transform(sample.image()), sample.label


class EpochSampler(Sampler[int]):
    """A permutation that depends on seed and epoch alone, so that a resumed run goes on in the same order."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(mixed(self.seed, self.epoch, -1))
        yield from torch.randperm(self.size, generator=generator).tolist()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random state of ``random`` and torch (on the CPU) set for the block and put back after it."""
    states = random.getstate(), torch.random.get_rng_state()
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        torch.random.set_rng_state(states[1])


def mixed(seed: int, epoch: int, index: int) -> int:
    """One seed of three numbers; neighbours in any of them are unrelated."""
    return random.Random(f"{seed}/{epoch}/{index}").getrandbits(63)  # noqa: S311  (no secret)


def spare_workers(device: torch.device) -> int:
    """Processes that may load images: beside a GPU most cores, beside training on few cores none."""
    cores = os.cpu_count() or 1
    return min(8, cores - 1) if device.type != "cpu" else min(4, max(0, cores // 2 - 1))


def training_loader(
    images: Images, batch_size: int, workers: int
) -> tuple[DataLoader[tuple[Tensor, int]], EpochSampler]:
    """Shuffled batches of one size: a last smaller one would upset batch norms, so it is left out of the epoch."""
    sampler = EpochSampler(len(images), images.seed)
    size = min(batch_size, len(images))
    return DataLoader(images, size, sampler=sampler, num_workers=workers, drop_last=True), sampler


def evaluation_loader(images: Images, batch_size: int, workers: int) -> DataLoader[tuple[Tensor, int]]:
    """Every image once, in order."""
    return DataLoader(images, batch_size, num_workers=workers)
