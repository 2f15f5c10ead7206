"""Whether training waits for images, and the time a process takes to start."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from .jobs import SPENDERS, Options, make_job, noisy_images
from .ratios import Ratio, in_turns, summed_up, timed


def loading(options: Options) -> Iterator[Ratio]:
    """The share of a ResNet-18's training that waits for images, with and without memory for them."""
    from taps_registry.registry.training.allocator import kept_memory

    count, size = (96, (320, 240)) if options.quick else (480, (500, 375))
    epochs = 2 if options.quick else 3
    with noisy_images(count, 4, size) as images, kept_memory():
        for memory_for_images, what in ((0, "decoded each time"), (None, "kept once decoded")):
            shares = _waiting(options, images, memory_for_images, epochs)
            note = f"first epoch {100 * shares[0]:.1f} % of its time, later ones as given; {count} JPEGs of {size}"
            name = f"resnet18, {options.pixels} px: share of a step spent waiting, images {what}"
            yield summed_up("loading", name, shares[1:], target=0.5, note=note)
        yield from _an_image(images, options.pixels)


def _an_image(images: Path, pixels: int) -> Iterator[Ratio]:
    """Where the time of one training image goes, in one process: decoding, transforming, taking it from memory."""
    from taps_registry.registry.data.folders import read_folders
    from taps_registry.registry.data.loaders import Images
    from taps_registry.registry.data.transforms import training_transform
    from taps_registry.registry.records import InputConfig

    samples = read_folders(images).samples[:64]
    config = InputConfig((3, pixels, pixels), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.95, "center")
    transform = training_transform(config, "standard")
    decoded = [sample.image() for sample in samples]
    plain = Images(samples, transform)
    kept = Images(samples, transform, room=10**9)
    works = {
        "decoded": lambda: [sample.image() for sample in samples],
        "transformed": lambda: [transform(image) for image in decoded],
        "in all": lambda: [plain[index] for index in range(len(samples))],
        "in all once kept": lambda: [kept[index] for index in range(len(samples))],
    }
    timers = {name: timed(work) for name, work in works.items()}
    rounds = [{name: timer() for name, timer in timers.items()} for _ in range(5)]
    medians = {name: 1000 * statistics.median(each[name] for each in rounds) / len(samples) for name in works}
    note = ", ".join(f"{name} {median:.2f} ms" for name, median in medians.items())
    ratios = [each["in all once kept"] / each["in all"] for each in rounds]
    yield summed_up("loading", f"{pixels} px: an image once kept / decoded each time", ratios, note=note)


def _waiting(options: Options, images: Path, memory_for_images: int | None, epochs: int) -> list[float]:
    """For each epoch the share of its time in which the loop waits for its next batch."""
    from taps_registry.registry.data.splits import open_data
    from taps_registry.registry.training.loop import Trainer
    from taps_registry.registry.training.progress import Progress

    job = make_job(replace(options, batch=32), "resnet18", SPENDERS[0])
    settings = replace(job.settings, image_memory=memory_for_images)
    trainer = Trainer(replace(job, data=open_data(str(images)), settings=settings), Progress(), lambda result: None)
    trainer.adaptation.start_epoch(0)
    trainer.adaptation.train()
    shares = []
    for epoch in range(epochs):
        trainer.sampler.epoch = trainer.images.epoch = epoch
        waited, begun = 0.0, perf_counter()
        batches = iter(trainer.loader)
        for step in range(trainer.steps):
            asked = perf_counter()
            pixels, labels = next(batches)
            waited += perf_counter() - asked
            trainer._step(epoch, step, pixels, labels)
        shares.append(waited / (perf_counter() - begun))
    return shares


def start(options: Options) -> Iterator[Ratio]:
    """``--help`` in a fresh process, beside Python doing nothing."""
    program = str(Path(sys.executable).with_name("taps-registry"))

    def seconds(*command: str) -> Callable[[], float]:
        return timed(lambda: subprocess.run(command, capture_output=True, check=True))  # noqa: S603  (ours)

    asked, nothing = seconds(program, "--help"), seconds(sys.executable, "-c", "pass")
    times = [asked() for _ in range(5 if options.quick else 15)]
    ratios = in_turns(asked, nothing, 5 if options.quick else 15)
    note = f"--help takes {statistics.median(times):.3f} s ({min(times):.3f} to {max(times):.3f}); target 0.2 s"
    yield summed_up("help", "taps-registry --help / python -c pass", ratios, note=note)
