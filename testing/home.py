"""A real registry with a few images, for the suites.

A suite that stopped at the plugin's own functions could not say whether a task comes back from the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from ..registry import Registry
from ..registry.errors import Interrupted
from ..registry.records import Task
from ..registry.training.progress import EpochResult, Progress

QUICK: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 4,
    "augment": "none",
    "device": "cpu",
    "tracker": "none",
    "workers": 0,
}


class Listener(Progress):
    """Keeps the notes, and presses Ctrl-C after an epoch.

    Args:
        stop: the epoch, counted from 1; 0 for never.
    """

    def __init__(self, stop: int = 0) -> None:
        self.stop = stop
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def epoch(self, result: EpochResult) -> None:
        if result.epoch == self.stop:
            raise KeyboardInterrupt


@contextmanager
def registry_with_base(folder: Path, model: str, pixels: int, arguments: dict[str, Any]) -> Iterator[Registry]:
    """A registry in a folder, with images beside it and ``model`` as its base ``base``."""
    make_images(images_in(folder), pixels)
    with Registry.init(folder / "home") as registry:
        registry.add_base("base", model, random_init=True, input_size=pixels, arguments=arguments)
        yield registry


def images_in(folder: Path) -> Path:
    """Where the images beside the registry are."""
    return folder / "images"


def make_images(folder: Path, pixels: int) -> None:
    """Two classes of eight PNG files each: noise around a brightness of the class's own."""
    chance = numpy.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            values = chance.normal(level, 25, (pixels, pixels, 3)).clip(0, 255).astype("uint8")
            Image.fromarray(values).save(folder / name / f"{number}.png")


def add(registry: Registry, folder: Path, name: str, **settings: Any) -> Task:
    """Train a task on the base."""
    return registry.add_task(name, "base", images_in(folder), **{**QUICK, **settings})


def interrupted(registry: Registry, folder: Path, name: str, **settings: Any) -> bool:
    """Train a task until its first epoch is over, and stop it; whether that is what stopped it."""
    try:
        add(registry, folder, name, progress=Listener(stop=1), **settings)
    except Interrupted:
        return True
    return False
