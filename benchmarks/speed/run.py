"""Speed as ratios against what one would do without the registry.

    python -m benchmarks.speed.run --quick                            # minutes, on the CPU
    python -m benchmarks.speed.run                                    # an hour or more, on two cores
    python -m benchmarks.speed.run --device cuda --precision bf16 --compile
    python -m benchmarks.speed.run --part steps --part memory --model resnet50

What is compared is measured in one run and in turns (A B, B A, ...): a ratio is the median of the ratios of the pairs,
with an interval that holds the median in 95 % of resamplings of them. Absolute times of another run mean nothing.
SPEED.md says what each part measures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import click

from ..conditions import conditions, write
from .files import files
from .jobs import SPENDERS, Options
from .loading import loading, start
from .memory import memory, peak
from .ratios import Ratio
from .steps import steps
from .whole import whole_runs

MEASURES: dict[str, Callable[[Options], Iterator[Ratio]]] = {
    "steps": steps,
    "memory": memory,
    "add-task": whole_runs,
    "files": files,
    "loading": loading,
    "help": start,
}


@click.command()
@click.option("--part", "parts", multiple=True, type=click.Choice(list(MEASURES)), help="All of them unless named.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="torch.compile for every contender.")
@click.option("--model", "models", multiple=True, help="Default: resnet50 and vit_small_patch16_224.")
@click.option("--method", "methods", multiple=True, type=click.Choice(SPENDERS), help="Of those that spend a budget.")
@click.option("--batch", default=16, show_default=True)
@click.option("--pixels", default=224, show_default=True)
@click.option("--pairs", default=15, show_default=True, help="Of steps; of whole runs at most 5.")
@click.option(
    "--clock",
    type=click.Choice(["wall", "cpu"]),
    default="wall",
    show_default=True,
    help="For training: cpu counts this process's own work, on a machine that others work on; set OMP_NUM_THREADS=1.",
)
@click.option("--quick", is_flag=True, help="Few pairs, small images: to see that it runs, not to cite.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/speed.json"))
@click.option("--child", hidden=True, help="The memory of one contender, measured in this process.")
def main(
    parts: tuple[str, ...],
    device: str,
    precision: str,
    compiled: bool,
    models: tuple[str, ...],
    methods: tuple[str, ...],
    batch: int,
    pixels: int,
    pairs: int,
    clock: str,
    quick: bool,
    out: Path,
    child: str | None,
) -> None:
    """Measure ratios, print them as a table, and write them down."""
    options = Options(
        device=device,
        precision=precision,
        compile=compiled,
        models=models or ("resnet50", "vit_small_patch16_224"),
        batch=8 if quick else batch,
        pixels=96 if quick and pixels == 224 else pixels,
        pairs=5 if quick else pairs,
        warmup=2 if quick else 3,
        quick=quick,
        clock=clock,
        methods=methods or SPENDERS,
    )
    if child:
        return click.echo(json.dumps(peak(options, *child.split("/"))))
    found: list[Ratio] = []
    for part in parts or MEASURES:
        for ratio in MEASURES[part](options):
            found.append(ratio)
            between = f"{ratio.low:.3f} to {ratio.high:.3f}"
            click.echo(f"{ratio.part:9} {ratio.what:62} {ratio.ratio:7.3f}  ({between})  {ratio.verdict}")
            if ratio.note:
                click.echo(f"{'':10}{ratio.note}")
    packages = ["taps-registry", "torch", "timm", "accelerate", "pillow", "numpy"]
    where = conditions(packages)
    if options.on_gpu:
        import torch

        where["machine"]["gpu"] = torch.cuda.get_device_name()
    results = [{**asdict(ratio), "verdict": ratio.verdict} for ratio in found]
    write(out, {"options": asdict(options), **where, "results": results})
    return click.echo(f"Written to {out}.")


if __name__ == "__main__":
    main()
