"""What is trained: a job as ``add-task`` prepares it, and images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy
from PIL import Image

CLASSES = 100
BUDGET = "10%"
SPENDERS = ("taps-rank", "taps")  # methods that are given the budget; the first is the default
STANDSTILL = 1e-6  # learning rate: one batch learnt by heart leaves subnormal gradients, which CPUs are slow at
BEYOND = 4000  # steps of the runs that steps are taken from: no such run ends


@dataclass(frozen=True)
class Options:
    """What the command line said."""

    device: str
    precision: str
    compile: bool
    models: tuple[str, ...]
    batch: int
    pixels: int
    pairs: int
    warmup: int
    quick: bool
    clock: str = "wall"
    methods: tuple[str, ...] = SPENDERS

    def now(self) -> float:
        """Seconds, by the clock that training is measured with."""
        return process_time() if self.clock == "cpu" else perf_counter()

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")


def make_job(options: Options, model: str, method: str) -> Any:
    """A job as ``add-task`` prepares it, for a random base and images that nobody looks at."""
    import timm
    import torch

    from taps_registry.plugins.manager import PluginManager
    from taps_registry.registry.data.samples import Sample
    from taps_registry.registry.data.splits import TaskData
    from taps_registry.registry.models.build import has_fixed_size, input_config
    from taps_registry.registry.models.measure import parameters
    from taps_registry.registry.training.job import Job
    from taps_registry.registry.training.limits import limits
    from taps_registry.registry.training.settings import TaskSettings

    torch.manual_seed(0)
    sized = {"img_size": options.pixels} if has_fixed_size(model) else {}
    built = timm.create_model(model, num_classes=CLASSES, **sized)
    plugins = PluginManager()
    architecture = plugins.architecture_for(built)
    partition = plugins.partition(architecture, built)
    samples = tuple(Sample(str(number), 0, bytes) for number in range(10 * options.batch))
    settings = TaskSettings(
        data="",
        method=method,
        epochs=BEYOND // 10,
        batch_size=options.batch,
        lr=STANDSTILL,
        budget=BUDGET if method in SPENDERS else "",
        device=options.device,
        precision=options.precision,
        image_memory=0,
    )
    job = Job(
        settings=settings,
        model=built,
        partition=partition,
        method=plugins.method(method),
        method_settings=settings.for_method(plugins.method(method), architecture.learning_rate),
        encoding=plugins.encoding("fp32"),
        data=TaskData(tuple(map(str, range(CLASSES))), samples, samples, (), ""),
        input=input_config(built, options.pixels),
        backbone_params=parameters(built, without=partition.head),
        folder=Path(tempfile.gettempdir()),
    )
    return replace(job, method_settings=replace(job.method_settings, limits=limits(job)))


@contextmanager
def noisy_images(count: int, classes: int, size: tuple[int, int]) -> Iterator[Path]:
    """Class folders of JPEG files of noise over blobs, about as hard to decode as photographs."""
    chance = numpy.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            path = Path(folder) / str(number % classes) / f"{number}.jpg"
            path.parent.mkdir(exist_ok=True)
            blobs = Image.fromarray(chance.integers(0, 256, (12, 16, 3), dtype="uint8")).resize(size)
            pixels = numpy.asarray(blobs) + chance.normal(0, 12, (size[1], size[0], 3))
            Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(path, quality=92)
        yield Path(folder)
