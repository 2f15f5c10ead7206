"""Whole runs of add-task."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .jobs import BUDGET, SPENDERS, Options, noisy_images
from .ratios import Ratio, in_turns, summed_up


def whole_runs(options: Options) -> Iterator[Ratio]:
    """``add-task`` from the first image to the catalog, for equal epochs."""
    for model in options.models:
        yield from _of(model, options)


def _of(model: str, options: Options) -> Iterator[Ratio]:
    from taps_registry import Registry

    epochs, pairs = (3, 2) if options.quick else (10, min(5, options.pairs))
    per_class = 8 if options.quick else 40
    told = {
        "epochs": epochs,
        "batch_size": options.batch,
        "tracker": "none",
        "device": options.device,
        "precision": options.precision,
        "input_size": options.pixels,
    }
    with (
        noisy_images(4 * per_class, 4, (256, 192)) as images,
        tempfile.TemporaryDirectory() as home,
        Registry.init(Path(home) / "home") as registry,
    ):
        registry.add_base("base", model, random_init=True, input_size=options.pixels)

        def run(**settings: Any) -> float:
            begun = options.now()
            registry.add_task("task", "base", images, **told, **settings)
            seconds = options.now() - begun
            registry.remove("task")
            registry.gc()
            return seconds

        for spent in _spent(options):
            ratios = in_turns(partial(run, **spent), partial(run, method="full"), pairs)
            said = " ".join(f"--{name} {value}" for name, value in spent.items())
            what = f"{model}: add-task {said} / full, {epochs} epochs, {options.pixels} px"
            yield summed_up("add-task", what, ratios, target=1.05)


def _spent(options: Options) -> Iterator[dict[str, str]]:
    """The budget with each method, and with the default one what README.md recommends."""
    for method in options.methods:
        yield {"budget": BUDGET, "method": method}
    if SPENDERS[0] in options.methods:
        yield {"budget": "1%", "encoding": "int4", "method": SPENDERS[0]}
