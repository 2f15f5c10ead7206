"""Tasks: add-task, tasks, show, remove."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from ..plugins.methods import PENALTIES
from ..registry.models.transforms import AUGMENTATIONS
from ..registry.training.settings import GRANULARITIES, NORMS, PRECISIONS, SHARES, TaskSettings
from .output import Amount, Share, number, percent, print_json, print_table, say, size, time
from .session import Session, Verb, format_option

if TYPE_CHECKING:
    from ..registry.records import Base, Estimate, Task


ENCODINGS = (
    "fp32 (exact), bf16, fp16, int8, int4, int3, 1bit, lowrank or a plugin's, each also with +zstd; auto for the "
    "smallest that is right as often"
)


def setting(name: str, kind: Any, text: str, metavar: str | None = None) -> Callable[[Any], Any]:
    """An option for a field of ``TaskSettings``. Its value is None unless it is given, so that resuming can tell."""
    default = getattr(TaskSettings, name)
    shown = f"{text} Default: {default}." if default not in (None, "") else text
    return click.option(f"--{name.replace('_', '-')}", name, type=kind, metavar=metavar, help=shown)


@click.command(cls=Verb)
@click.argument("name")
@click.option("--base", metavar="B", help="The base model. Not needed with --resume.")
@click.option(
    "--data", metavar="DIR", help="Class folders, with or without train/ val/ test/; or SCHEME/NAME[@ROOT] of timm."
)
@setting("val_data", str, "Validation images, if they are elsewhere.", "DIR")
@setting("test_data", str, "Test images, if they are elsewhere.", "DIR")
@setting(
    "method",
    str,
    "How the base is adapted, see `taps-registry plugins`. Default: taps, or taps-rank with --budget.",
    "NAME",
)
@setting("epochs", click.IntRange(min=1), "Passes over the training images.", "N")
@setting("batch_size", click.IntRange(min=1), "Images a step.", "N")
@setting("lr", float, "Learning rate. Default: that of the base's plugin.", "RATE")
@setting("weight_decay", float, "Of gated layers towards the base, of the head's weight towards zero.", "RATE")
@setting("score_lr", float, "Learning rate of the gates' scores.", "RATE")
@setting("budget", str, "What may be stored: 5% of the base, 2MB, 500k parameters, remaining/N.", "AMOUNT")
@setting("sparsity", float, "Strength of the penalty that closes gates, without a budget.", "LAMBDA")
@setting("penalty", click.Choice(list(PENALTIES)), "What a gate weighs in it: all the same, or by size.")
@setting("threshold", float, "A gate is open while its score is at least this.", "TAU")
@setting("norms", click.Choice(NORMS), "The task's own norms, a gate for each, or the base's.")
@setting("granularity", click.Choice(GRANULARITIES), "A gate a layer, or one for the layers of a block.")
@setting("rank", click.IntRange(min=1), "Of low-rank factors, and width of adapters.", "R")
@setting("alpha", float, "Low-rank deltas are multiplied by alpha / rank.", "A")
@setting("keep", Share(), "Share of the weights that diff-pruning keeps.", "SHARE")
@setting("share", click.Choice(SHARES), "hard-sharing: which end of the model stays the base's.")
@setting("own", str, "hard-sharing: what is the task's own, in stages (2) or parameters (10%).", "AMOUNT")
@setting("common", str, "vmt-adapter: the set of tasks to have projections in common with.", "NAME")
@click.option("--method-arg", "method_args", multiple=True, metavar="K=V", help="Of a plugin's method; repeatable.")
@setting("encoding", str, f"{ENCODINGS}.", "NAME")
@setting("encoding_tolerance", float, "Points of validation accuracy that --encoding auto may lose.", "POINTS")
@setting("augment", click.Choice(list(AUGMENTATIONS)), "Random crops; 'standard' adds flips and colours.")
@setting("input_size", click.IntRange(min=1), "Height and width of images. Default: the base's.", "PX")
@setting("seed", int, "Of splits, head, order and augmentation.", "N")
@setting("device", str, "auto, cpu, cuda, cuda:1, mps.", "NAME")
@setting("precision", click.Choice(list(PRECISIONS)), "Of the forward and backward pass.")
@setting("workers", click.IntRange(min=0), "Processes that load images.", "N")
@setting(
    "image_memory", Amount("bytes"), "Memory for decoded images; 0 for none. Default: a quarter of what is free.", "2GB"
)
@setting("processes", click.IntRange(min=1), "Processes that train, one a device.", "N")
@setting("tracker", str, "mlflow, csv, none, or a plugin's.", "NAME")
@setting("tracking_uri", str, "A tracking server. Default: inside the registry.", "URI")
@click.option(
    "--skip-bad-images", is_flag=True, default=None, help="Leave unreadable images out instead of refusing them."
)
@click.option("--dry-run", is_flag=True, help="Only say what the task would cost at least and at most.")
@click.option("--resume", is_flag=True, help="Go on with this task's interrupted, failed or over-budget run.")
@format_option
@click.pass_obj
def add_task(
    session: Session,
    /,
    name: str,
    base: str | None,
    data: str | None,
    dry_run: bool,
    resume: bool,
    method_args: tuple[str, ...],
    form: str,
    **options: Any,
) -> None:
    """Train a task on a base and add it. No other task is touched.

    \b
    Examples:
      taps-registry add-task cars --base r50 --data images/cars
      taps-registry add-task cars --base r50 --data images/cars --method lora --rank 4 --dry-run
      taps-registry add-task cars --resume
      taps-registry add-task fashion --base r50 --data torch/fashion_mnist@/srv/data --encoding bf16
    """
    given = {option: value for option, value in options.items() if value is not None}
    if not resume and not (base and data):
        raise click.UsageError("A new task needs --base and --data; an interrupted one --resume.")
    if resume and dry_run:
        raise click.UsageError("--dry-run is for a new task; a resumed one stores what it was begun with.")
    if method_args:
        from ..registry.models.build import parse_arguments

        given["arguments"] = parse_arguments(method_args, "--method-arg")
    from .progress import make_progress

    with session.open() as registry:
        progress = make_progress()
        try:
            if dry_run:
                found = registry.estimate(name, str(base), str(data), progress=progress, **given)
                return print_json(found) if form == "json" else _print_estimate(found)
            if resume:
                _same_base(registry.task(name).base, base)
                changes = {**given, "data": data} if data else given
                task = registry.resume_task(name, progress=progress, **changes)
            else:
                task = registry.add_task(name, str(base), str(data), progress=progress, **given)
        finally:
            progress.close()
        cost = registry.cost([name])
    if form == "json":
        return print_json(task)
    share = cost.bases[0].tasks[0]
    say(f"Added {name}, version {task.version}: {_accuracy(task.metrics)}.")
    say(
        f"It stores {task.open_layers} of {task.gated_layers} layers, {number(task.params.total)} parameters "
        f"({percent(share.share_of_base)} of the base's) in {size(task.bytes)} ({percent(share.share_of_bytes)})."
    )
    say(f"Next: taps-registry predict {name} IMAGE; taps-registry cost")
    return None


def _print_estimate(found: Estimate) -> None:
    """Least and most, by part."""
    print_table(
        (f"{found.task} with {found.method}, {found.encoding}", "weights>", "norms>", "head>", "size>", "of base>"),
        (
            (
                what,
                number(found_size.params.weights),
                number(found_size.params.norms),
                number(found_size.params.head),
                size(found_size.bytes),
                percent(share),
            )
            for what, found_size, share in (
                ("at least", found.least, found.least_share),
                ("at most", found.most, found.most_share),
            )
        ),
    )
    say(f"Nothing was trained. {len(found.classes)} classes; the file's header comes on top of the size.")
    if found.refused:
        say(found.refused)


def _same_base(is_on: str, named: str | None) -> None:
    if named is not None and named != is_on:
        raise click.UsageError(f"The run to resume is on the base {is_on!r}, not on {named!r}.")


def _accuracy(metrics: Any) -> str:
    if not metrics:
        return "how often it is right is not known"
    if "test/accuracy" in metrics:
        return f"{percent(metrics['test/accuracy'])} of the test images right"
    return f"{percent(metrics['val/accuracy'])} of the validation images right (there were no test images)"


@click.command(cls=Verb)
@click.option("--base", metavar="B", help="Those on one base only.")
@format_option
@click.pass_obj
def tasks(session: Session, base: str | None, form: str) -> None:
    """List the tasks.

    \b
    Example:
      taps-registry tasks --base r50
    """
    with session.open() as registry:
        found = registry.tasks(base)
    if form == "json":
        return print_json({"tasks": found})
    print_table(
        (
            "task",
            "base",
            "state",
            "version>",
            "method",
            "encoding",
            "classes>",
            "open layers>",
            "size>",
            "accuracy>",
            "added",
        ),
        (
            (
                task.name,
                task.base,
                task.state,
                task.version or "",
                task.method,
                task.encoding,
                len(task.classes) or "",
                f"{task.open_layers}/{task.gated_layers}" if task.version else "",
                size(task.bytes) if task.version else "",
                accuracy(task.metrics),
                time(task.created),
            )
            for task in found
        ),
    )
    return None


def accuracy(metrics: Any) -> str:
    """Of the test images, or in brackets of the validation images where there are no others."""
    if "test/accuracy" in metrics:
        return percent(metrics["test/accuracy"])
    return f"({percent(metrics['val/accuracy'])})" if "val/accuracy" in metrics else ""


@click.command(cls=Verb)
@click.argument("name")
@format_option
@click.pass_obj
def show(session: Session, name: str, form: str) -> None:
    """Show all there is to know of a task or a base.

    \b
    Example:
      taps-registry show cars
    """
    from ..registry.errors import NotFoundError

    with session.open() as registry:
        found: dict[str, Task | Base] = {}
        with suppress(NotFoundError):
            found["task"] = registry.task(name)
        with suppress(NotFoundError):
            found["base"] = registry.base(name)
        if not found:
            known = {task.name for task in registry.tasks()} | {base.name for base in registry.bases()}
            every = ", ".join(sorted(known)) or "nothing yet"
            raise NotFoundError(f"There is no task or base {name!r}. There are: {every}")
    if form == "json":
        return print_json(found)
    for what, record in found.items():
        _print_facts(what, record)
        _print_layers(record)
    return None


def _print_facts(what: str, record: Any) -> None:
    from .session import plain

    facts = {name: value for name, value in plain(record).items() if name not in ("layers", "settings", "name")}
    print_table((what, record.name), ((name, _fact(value)) for name, value in facts.items() if value not in ("", None)))


def _fact(value: Any) -> str:
    """A value as people write it: lists with commas, mappings as ``name value``."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_fact(member)}" for name, member in value.items())
    if isinstance(value, list):
        return "x".join(map(str, value)) if all(isinstance(v, int) for v in value) else ", ".join(map(_fact, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_layers(record: Any) -> None:
    if not record.layers:
        return None
    if not hasattr(record, "classes"):
        rows = ((layer.name, layer.kind, layer.stage, number(layer.params)) for layer in record.layers)
        return print_table(("layer", "kind", "stage", "parameters>"), rows)
    print_table(
        ("layer", "kind", "stage", "stored", "score>", "parameters>", "size>"),
        (
            (
                layer.name,
                layer.kind,
                layer.stage,
                "yes" if layer.open else "",
                "" if layer.score is None else f"{layer.score:.3f}",
                number(layer.params) if layer.open else "",
                size(layer.bytes) if layer.open else "",
            )
            for layer in record.layers
        ),
    )
    return None


@click.command(cls=Verb)
@click.argument("task")
@click.option("--encoding", required=True, metavar="NAME", help=f"{ENCODINGS}.")
@setting("encoding_tolerance", float, "Points of validation accuracy that --encoding auto may lose.", "POINTS")
@setting("device", str, "Where accuracy is measured: auto, cpu, cuda, cuda:1, mps.", "NAME")
@format_option
@click.pass_obj
def recode(session: Session, /, task: str, encoding: str, form: str, **options: Any) -> None:
    """Store a task in another encoding, as a new version. Nothing is trained; `gc` frees the earlier version.

    \b
    Examples:
      taps-registry recode cars --encoding int4+zstd
      taps-registry recode cars --encoding auto --encoding-tolerance 0.5
    """
    from .progress import make_progress

    given = {option: value for option, value in options.items() if value is not None}
    with session.open() as registry:
        progress = make_progress()
        try:
            before = registry.task(task)
            after = registry.recode(task, encoding, progress=progress, **given)
        finally:
            progress.close()
    if form == "json":
        return print_json(after)
    if after.version != before.version:
        say(f"Stored {task} in {after.encoding}, version {after.version}: {_accuracy(after.metrics)}.")
        say(f"It takes {size(after.bytes)} instead of {size(before.bytes)}. Next: taps-registry gc")
    return None


@click.command(cls=Verb)
@click.argument("task")
@click.pass_obj
def remove(session: Session, task: str) -> None:
    """Forget a task, finished or in training. `gc` frees its bytes; no other task is touched.

    \b
    Example:
      taps-registry remove cars
    """
    with session.open() as registry:
        registry.remove(task)
    say(f"Removed {task}. `taps-registry gc` frees its bytes.")
