"""Using tasks: predict, evaluate, export."""

from __future__ import annotations

from typing import Any

import click

from .output import percent, print_json, print_table, say
from .session import Session, Verb, format_option
from .terminal import echo

device_option = click.option(
    "--device", default="auto", show_default=True, metavar="NAME", help="Device: auto, cpu, cuda, ..."
)


@click.command(cls=Verb)
@click.argument("task")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of classes to show per image.",
)
@device_option
@format_option
@click.pass_obj
def predict(session: Session, task: str, images: tuple[str, ...], top: int, device: str, form: str) -> None:
    """Classify images with a task.

    \b
    Example:
      taps-registry predict cars photo.jpg --top 3
    """
    with session.open() as registry:
        predictions = registry.predict(task, images, top=top, device=device)
    if form == "json":
        return print_json({"task": task, "predictions": predictions})
    return print_table(
        ("image", "class", "probability>"),
        ((prediction.image, name, percent(share)) for prediction in predictions for name, share in prediction.classes),
    )


@click.command(cls=Verb)
@click.argument("task")
@click.option("--data", required=True, metavar="DIR", help="Folder of class folders, with or without splits.")
@click.option(
    "--split",
    type=click.Choice(["test", "val", "train", "all"]),
    help="Which images. Default: test, else val, else all of a folder without splits; never what it was trained with.",
)
@click.option("--skip-bad-images", is_flag=True, help="Skip unreadable images instead of refusing them.")
@click.option("--confusion", metavar="FILE", help="Write the confusion matrix to a .csv or .png file.")
@click.option("--predictions", metavar="FILE", help="Write each image's prediction to a .csv file.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=64, show_default=True, metavar="N", help="Batch size."
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Number of processes that load images.",
)
@device_option
@format_option
@click.pass_obj
def evaluate(session: Session, /, task: str, form: str, **options: Any) -> None:
    """Evaluate a task on labelled images.

    \b
    Examples:
      taps-registry evaluate cars --data images/new-cars
      taps-registry evaluate cars --data images/cars --confusion cars.png --predictions cars.csv
    """
    options["split"] = options["split"] or ""
    with session.open() as registry:
        evaluation = registry.evaluate(task, **options)
    for note in evaluation.notes:
        say(note)
    if form == "json":
        return print_json(evaluation)
    print_table(
        ("task", "version>", "split", "images>", "accuracy>", "balanced>", "macro F1>", "loss>"),
        [
            (
                evaluation.task,
                evaluation.version,
                evaluation.split,
                evaluation.images,
                percent(evaluation.accuracy),
                percent(evaluation.balanced_accuracy),
                percent(evaluation.macro_f1),
                f"{evaluation.loss:.4f}",
            )
        ],
    )
    return print_table(
        ("class", "images>", "precision>", "recall>", "F1>"),
        ((c.name, c.images, percent(c.precision), percent(c.recall), percent(c.f1)) for c in evaluation.classes),
    )


@click.command(cls=Verb)
@click.argument("task")
@click.argument("out", metavar="OUT.safetensors")
@click.pass_obj
def export(session: Session, task: str, out: str) -> None:
    """Export a task as a timm checkpoint (.safetensors) or a torch.export program (.pt2).

    \b
    Examples:
      taps-registry export cars cars.safetensors
      taps-registry export cars cars.pt2
    """
    with session.open() as registry:
        call = registry.export(task, out)
    say(f"Wrote {out}. Load it with:")
    echo(call)
