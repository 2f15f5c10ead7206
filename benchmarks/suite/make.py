"""Makes the suite's image folders and backbones: ``python -m benchmarks.suite.make --out DIR``.

``DIR/images/TASK`` is what ``taps-registry add-task --data`` takes, ``DIR/bases/NAME.safetensors`` what ``add-base
--weights`` takes. What is there is left as it is.
"""

from __future__ import annotations

import os

# Before torch is imported, in the processes that train as well: another number of threads rounds otherwise.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path

from .tasks import SIZES, TASKS, write

DEFAULT = Path("benchmarks/.suite")


def make(
    out: Path, size: str, *, tasks: Iterable[str] = TASKS, bases: Iterable[str] | None = None, device: str = "cpu"
) -> None:
    """Make what is missing, and say so.

    Args:
        out: the folder.
        size: a key of ``SIZES``; each has a folder of its own below ``out``.
        tasks: names.
        bases: names; None for all.
        device: that the backbones train on.
    """
    from .bases import backbones, pretrain

    folder = out / size
    for name in tasks:
        write(TASKS[name], folder / "images", SIZES[size])
    for backbone in backbones(size).values():
        if bases is not None and backbone.name not in bases:
            continue
        began = time.monotonic()
        reached = pretrain(backbone, folder / "bases" / f"{backbone.name}.safetensors", SIZES[size], device)
        if not math.isnan(reached):
            seconds = time.monotonic() - began
            print(
                f"{backbone.name}: {100 * reached:.1f} % of unseen Latin characters right, {seconds:.0f} s", flush=True
            )


def commands(out: Path, size: str) -> list[str]:
    """What to type to use the folders with the registry's own command line."""
    from .bases import backbones

    lines = []
    for backbone in backbones(size).values():
        options = " ".join(f"--model-arg '{key}={json.dumps(v)}'" for key, v in backbone.complete(SIZES[size]).items())
        weights = out / size / "bases" / f"{backbone.name}.safetensors"
        pixels = SIZES[size].pixels
        lines.append(
            f"taps-registry add-base {backbone.name} --model {backbone.model} --weights {weights} "
            f"--input-size {pixels} {options}"
        )
    return [*lines, f"taps-registry add-task greek --base resnet34 --data {out / size / 'images' / 'greek'}"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite.make", description=__doc__.partition(":")[0])
    parser.add_argument("--out", type=Path, default=DEFAULT, help=f"folder (default: {DEFAULT})")
    parser.add_argument("--size", choices=SIZES, default="cpu", help="how much and how large (default: cpu)")
    parser.add_argument("--device", default="cpu", help="that the backbones train on (default: cpu)")
    chosen = parser.parse_args()
    make(chosen.out, chosen.size, device=chosen.device)
    print("\nTo use them by hand:")
    for line in commands(chosen.out, chosen.size):
        print(f"  {line}")


if __name__ == "__main__":
    main()
