"""Files, and loading them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy

from .jobs import BUDGET, Options, noisy_images
from .ratios import Ratio, exactly, in_turns, summed_up, timed


def files(options: Options) -> Iterator[Ratio]:
    """How much of an artifact is not tensors, and how fast a task is put together."""
    from safetensors import safe_open

    from taps_registry import Registry
    from taps_registry.registry.catalog import bases, tasks
    from taps_registry.registry.inference.compose import compose
    from taps_registry.registry.models.bases import load

    model = options.models[0]
    told = {"epochs": 3, "augment": "none", "tracker": "none", "batch_size": 8, "input_size": 64, "workers": 0}
    with (
        noisy_images(48, 3, (80, 60)) as images,
        tempfile.TemporaryDirectory() as home,
        Registry.init(Path(home) / "home") as registry,
    ):
        registry.add_base("base", model, random_init=True)
        for name, settings in (
            ("taps", {"budget": BUDGET}),
            ("norm-only", {"method": "norm-only"}),
            ("head-only", {"method": "head-only"}),
        ):
            task = registry.add_task(name, "base", images, **told, **settings)
            with safe_open(registry._context.store.path(task.digest), "pt") as file:
                held = sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118  (it is no dict)
            target = 1.01 if name == "taps" else None
            note = f"{task.bytes:,} bytes, {held:,} of them tensors"
            what = f"{model}: bytes of the file of a task / of its tensors, {name}"
            yield exactly("files", what, task.bytes / held, target=target, note=note)

        store = registry._context.store
        with registry._context.catalog.read() as session:
            base, task = bases.get(session, "base"), tasks.get(session, "taps")
        paths = [store.path(base.object), store.path(task.digest)]
        loaded = load(registry._context, base)
        pairs = 4 if options.quick else 15
        whole = timed(lambda: registry.load("taps", device="cpu"))
        part = timed(lambda: compose(loaded, store.get(task.digest), store.get))
        read = timed(lambda: [path.read_bytes() for path in paths])
        held = [numpy.frombuffer(path.read_bytes(), dtype="uint8") for path in paths]
        copy = timed(lambda: [array.copy() for array in held])
        note = f"{sum(path.stat().st_size for path in paths) / 1e6:.0f} MB of base and artifact, in the page cache"
        for what, above, target in (
            ("reading base and artifact / loading the task", read, 0.5),
            ("copying base and artifact in memory / loading the task", copy, None),
            ("reading base and artifact / composing on a base loaded already", read, 0.5),
        ):
            below = part if "composing" in what else whole
            ratios = in_turns(above, below, pairs)
            yield summed_up("files", f"{model}: {what}", ratios, target=target, at_least=True, note=note)
