"""Peaks of memory: a process for each contender."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from .contenders import Composed, Steps
from .jobs import SPENDERS, Options
from .ratios import Ratio, exactly


def peak(options: Options, model: str, contender: str) -> dict[str, int]:
    """Bytes of a run's steps before and after its gates are fixed, beyond what the imports took."""
    import psutil

    from taps_registry.registry.training.allocator import kept_memory

    for name in ("timm.optim", "taps_registry.registry.training.loop"):
        import_module(name)  # their own memory is nobody's
    before = psutil.Process().memory_info().rss
    with kept_memory():
        return _peak(options, model, contender, before)


def _peak(options: Options, model: str, contender: str, before: int) -> dict[str, int]:
    import torch

    made = Composed(options, model) if contender == "composed" else Steps(options, model, contender)
    made.warm_up()
    if contender in SPENDERS:
        made.fix()
        made.warm_up()
    if options.on_gpu:
        return {"bytes": torch.cuda.max_memory_allocated()}
    return {"bytes": _most_resident() - before, "imports": before}


def _most_resident() -> int:
    """Bytes that this process had in memory at most; ``ru_maxrss`` knows what its parent had as well."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def _bytes(command: list[str]) -> int:
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  (this package)
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])


def memory(options: Options) -> Iterator[Ratio]:
    """Peaks of memory; on the CPU each the median of three processes: what its allocator can reuse differs."""
    given = ["--device", options.device, "--precision", options.precision, "--batch", str(options.batch)]
    given += ["--pixels", str(options.pixels), *(["--compile"] if options.compile else [])]
    processes = 1 if options.quick or options.on_gpu else 3
    for model in options.models:
        peaks = {}
        for contender in ("full", *options.methods, "composed"):
            command = [sys.executable, "-m", "benchmarks.speed.run", *given, "--child", f"{model}/{contender}"]
            peaks[contender] = statistics.median(_bytes(command) for _ in range(processes))
        note = ", ".join(f"{name} {peak / 1e6:.0f} MB" for name, peak in peaks.items())
        what = f"{model}: peak memory of %s / of full"
        for method in options.methods:
            yield exactly("memory", what % method, peaks[method] / peaks["full"], target=1.35, note=note)
        yield exactly("memory", what % "W0 + I*D", peaks["composed"] / peaks["full"])
