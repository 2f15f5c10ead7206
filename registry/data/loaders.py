"""Batches of a task's images, the same ones under the same seed however many workers load them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .cache import Cache
from .samples import Sample
from .transforms import Transform, batch


class Images(Dataset[tuple[Tensor, int]]):
    """Samples through a transform whose random choices depend on seed, epoch and index alone.

    The transform makes ``(C, H, W)`` float32 of a PIL image; a ``fixed`` one makes no random choices. Decoded images
    are kept in ``room`` bytes, transformed too if the transform is fixed.
    """

    def __init__(
        self, samples: Sequence[Sample], transform: Transform, seed: int = 0, *, fixed: bool = False, room: int = 0
    ) -> None:
        self.samples = samples
        self.transform = transform
        self.seed = seed
        self.fixed = fixed
        self.cache = Cache(len(samples), room, "float32" if fixed else "uint8")
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # loader processes live for many epochs

    @property
    def epoch(self) -> int:
        """What random choices depend on beside seed and index."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        kept = self.cache.get(index)
        if kept is not None and self.fixed:
            return torch.from_numpy(kept.copy()), self.samples[index].label
        image = self._decoded(index) if kept is None else Image.fromarray(kept)
        with seeded(mixed(self.seed, self.epoch, index)):
            pixels = self.transform(image)
        if self.fixed:
            self.cache.put(index, pixels.numpy())
        return pixels, self.samples[index].label

    def _decoded(self, index: int) -> Image.Image:
        image = self.samples[index].image()
        if not self.fixed:
            self.cache.put(index, numpy.asarray(image))
        return image


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


def spare_workers(device: torch.device, processes: int = 1) -> int:
    """Processes that may load images for one of ``processes`` that train.

    Beside a GPU that is most cores; beside training on the CPU, which uses them all itself, few or none.
    """
    cores = (os.cpu_count() or 1) // processes
    return max(0, min(16, cores - 1) if device.type != "cpu" else min(4, cores // 2 - 1))


def training_loader(
    images: Images, batch_size: int, workers: int
) -> tuple[DataLoader[tuple[Tensor, int]], EpochSampler]:
    """Shuffled batches of one size: a last smaller one would upset batch norms, so it is left out of the epoch."""
    sampler = EpochSampler(len(images), images.seed)
    size = min(batch_size, len(images))
    keep = workers > 0
    loader = DataLoader(
        images, size, sampler=sampler, num_workers=workers, collate_fn=together, drop_last=True, persistent_workers=keep
    )
    return loader, sampler


def evaluation_loader(images: Images, batch_size: int, workers: int) -> DataLoader[tuple[Tensor, int]]:
    """Every image once, in order."""
    return DataLoader(images, batch_size, num_workers=workers, collate_fn=together)


def together(samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """A batch of images and their labels ``(B,)``."""
    pixels, labels = zip(*samples, strict=True)
    return batch(pixels), torch.tensor(labels)
