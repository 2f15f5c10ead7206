"""Files, and loading them."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy

from .jobs import BUDGET, Options, noisy_images
from .ratios import Ratio, exactly, in_turns, summed_up, timed

if TYPE_CHECKING:
    from taps_registry import Base, Registry


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

        pairs = 4 if options.quick else 12
        yield _from_the_disk(registry, "budget", pairs)
        yield from _from_memory(registry, "budget", pairs)


def _from_the_disk(registry: Registry, name: str, pairs: int) -> Ratio:
    """How fast a task is loaded, beside reading its bytes and the base's, which could not be faster.

    Each time from a copy that nobody has read since it was written: what was read before, the host of a virtual machine
    still has in memory when the machine's page cache has forgotten it.
    """
    from taps_registry import Registry

    original = registry._context.home.root
    unread = [original.with_name(f"copy-{number}") for number in range(2 * pairs)]
    for copy in unread:
        shutil.copytree(original, copy)
        _forget(path for path in copy.rglob("*") if path.is_file())

    def seconds(work: Callable[[Registry, list[Path]], object]) -> float:
        with Registry.open(unread.pop(0)) as copied:
            copied.plugins()  # found once, and not anew for each task
            paths = _files(copied, name)
            begun = perf_counter()
            work(copied, paths)
            return perf_counter() - begun

    spent: list[float] = []

    def reading() -> float:
        spent.append(seconds(lambda _, paths: [path.read_bytes() for path in paths]))
        return spent[-1]

    ratios = in_turns(reading, lambda: seconds(lambda copied, _: copied.load(name, device="cpu")), pairs)
    size = _megabytes(registry, name)
    what = f"{_base(registry, name).model}: reading base and artifact from the disk / loading the task from it"
    note = f"{size:.0f} MB, which the disk gave at {size / statistics.median(spent):.0f} MB/s"
    return summed_up("files", what, ratios, target=0.5, at_least=True, note=note)


def _from_memory(registry: Registry, name: str, pairs: int) -> Iterator[Ratio]:
    """The same from the page cache, and of composing it on a base that is loaded already."""
    from taps_registry.registry.inference.compose import compose
    from taps_registry.registry.models.bases import load

    paths, base, fetch = _files(registry, name), _base(registry, name), registry._context.store.get
    held = [numpy.frombuffer(path.read_bytes(), dtype="uint8") for path in paths]
    loaded, digest = load(registry._context, base), registry.task(name).digest
    reading = timed(lambda: [path.read_bytes() for path in paths])
    copying = timed(lambda: [array.copy() for array in held])
    loading = timed(lambda: registry.load(name, device="cpu"))
    composing = timed(lambda: compose(loaded, fetch(digest), fetch))
    for what, above, below in (
        ("reading base and artifact from the page cache / loading the task", reading, loading),
        ("copying base and artifact in memory / loading the task", copying, loading),
        ("reading base and artifact from the page cache / composing the task", reading, composing),
    ):
        note = f"{_megabytes(registry, name):.0f} MB"
        yield summed_up("files", f"{base.model}: {what}", in_turns(above, below, pairs), note=note)


def _base(registry: Registry, name: str) -> Base:
    return registry.base(registry.task(name).base)


def _files(registry: Registry, name: str) -> list[Path]:
    """Of a base and a task."""
    digests = _base(registry, name).object, registry.task(name).digest
    return [registry._context.store.path(digest) for digest in digests]


def _megabytes(registry: Registry, name: str) -> float:
    return sum(path.stat().st_size for path in _files(registry, name)) / 1e6


def _forget(paths: Iterable[Path]) -> None:
    """Put files out of the page cache; on Linux."""
    for path in paths if hasattr(os, "posix_fadvise") else ():
        with path.open("rb") as file:
            os.fsync(file)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
