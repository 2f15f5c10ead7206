"""Files, and loading them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from .jobs import BUDGET, Options, noisy_images
from .ratios import Ratio, exactly, in_turns, summed_up, timed

if TYPE_CHECKING:
    from taps_registry import Registry


def files(options: Options) -> Iterator[Ratio]:
    """How much of an artifact is not tensors, and how fast a task is put together."""
    from taps_registry import Registry
    from taps_registry.registry.store.artifact import tensor_bytes

    model = options.models[0]
    told = {"epochs": 3, "augment": "none", "tracker": "none", "batch_size": 8, "input_size": 64, "workers": 0}
    with (
        noisy_images(48, 3, (80, 60)) as images,
        tempfile.TemporaryDirectory() as home,
        Registry.init(Path(home) / "home") as registry,
    ):
        registry.add_base("base", model, random_init=True)
        for name, told_about, settings in (
            ("budget", f"--budget {BUDGET}", {"budget": BUDGET}),
            ("little", "--budget 1% --encoding int4", {"budget": "1%", "encoding": "int4"}),
            ("norms", "--method norm-only", {"method": "norm-only"}),
            ("head", "--method head-only, three classes", {"method": "head-only"}),
        ):
            task = registry.add_task(name, "base", images, **told, **settings)
            held = sum(tensor_bytes(registry._context.store.path(task.digest)).values())
            note = f"{task.bytes:,} bytes, {held:,} of them tensors"
            what = f"{model}: bytes of the file of a task / of its tensors, {told_about}"
            yield exactly("files", what, task.bytes / held, target=1.01, note=note)

        yield from _put_together(options, registry, "budget")


def _put_together(options: Options, registry: Registry, name: str) -> Iterator[Ratio]:
    """How fast a task is loaded, beside what could not be faster: its bytes and the base's, read or copied."""
    from taps_registry.registry.catalog import bases, tasks
    from taps_registry.registry.inference.compose import compose
    from taps_registry.registry.models.bases import load

    store = registry._context.store
    with registry._context.catalog.read() as session:
        task = tasks.get(session, name)
        base = bases.get(session, task.base)
    paths = [store.path(base.object), store.path(task.digest)]
    loaded = load(registry._context, base)
    held = [numpy.frombuffer(path.read_bytes(), dtype="uint8") for path in paths]

    def read() -> None:
        for path in paths:
            path.read_bytes()

    def load_task() -> None:
        registry.load(name, device="cpu")

    def compose_task() -> None:
        compose(loaded, store.get(task.digest), store.get)

    from_disk = [_forgotten(paths, timed(work)) for work in (read, load_task)]
    in_memory = timed(read), timed(lambda: [array.copy() for array in held])
    note = f"{sum(path.stat().st_size for path in paths) / 1e6:.0f} MB of base and artifact"
    for what, above, below, target in (
        ("reading base and artifact from the disk / loading the task from it", *from_disk, 0.5),
        ("reading base and artifact from the page cache / loading the task", in_memory[0], timed(load_task), None),
        ("copying base and artifact in memory / loading the task", in_memory[1], timed(load_task), None),
        ("reading base and artifact from the page cache / composing the task", in_memory[0], timed(compose_task), None),
    ):
        ratios = in_turns(above, below, 4 if options.quick else 15)
        yield summed_up("files", f"{base.model}: {what}", ratios, target=target, at_least=True, note=note)


def _forgotten(paths: Sequence[Path], timer: Callable[[], float]) -> Callable[[], float]:
    """The same, with these files out of the page cache before; on Linux."""

    def measured() -> float:
        for path in paths if hasattr(os, "posix_fadvise") else ():
            with path.open("rb") as file:
                os.fsync(file)
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return timer()

    return measured
