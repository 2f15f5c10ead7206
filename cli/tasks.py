"""Tasks: add-task, tasks, show, remove."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from ..plugins.methods.options import BUILT_IN
from ..plugins.options import options_of
from ..registry.training.settings import ENCODINGS, TaskSettings
from .options import declared
from .output import number, percent, print_json, print_table, say, size, time
from .session import Session, Verb, format_option

if TYPE_CHECKING:
    from ..registry.records import Base, Estimate, Task


FIRST = ("data", "val_data", "test_data", "method", "epochs", "batch_size", "lr", "weight_decay", "budget")


@click.command(cls=Verb)
@click.argument("name")
@click.option("--base", metavar="B", help="The base model. Not needed with --resume.")
@declared(TaskSettings, names=FIRST)
@declared(*BUILT_IN)
@click.option(
    "--method-arg",
    "method_args",
    multiple=True,
    metavar="K=V",
    help="Extra argument for a plugin's method; repeatable.",
)
@declared(TaskSettings, names=[name for name in options_of(TaskSettings) if name not in FIRST])
@click.option(
    "--dry-run", is_flag=True, help="Only show the least and the most that the task would store; train nothing."
)
@click.option("--resume", is_flag=True, help="Resume this task's interrupted, failed or over-budget run.")
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
    """Train a task on a base and add it. Other tasks stay unchanged.

    \b
    Examples:
      taps-registry add-task cars --base r50 --data images/cars
      taps-registry add-task cars --base r50 --data images/cars --method lora --rank 4 --dry-run
      taps-registry add-task cars --base r50 --data images/cars --budget 1% --encoding int4
      taps-registry add-task cars --resume
      taps-registry add-task fashion --base r50 --data torch/fashion_mnist@/srv/data --encoding bf16
    """
    given = {option: value for option, value in options.items() if value is not None}
    if not resume and not (base and data):
        raise click.UsageError("A new task needs --base and --data; an interrupted one needs --resume.")
    if resume and dry_run:
        raise click.UsageError("--dry-run is for a new task; a resumed run keeps the settings it was started with.")
    if given.get("budget") == "":
        raise click.UsageError("--budget is empty. Give it an amount, such as 5%, or leave it out for no limit.")
    if method_args:
        from ..registry.models.build import parse_arguments

        given["arguments"] = parse_arguments(method_args, "--method-arg")
    from .progress import make_progress

    with session.open() as registry:
        progress = make_progress()
        try:
            if dry_run:
                estimate = registry.estimate(name, str(base), str(data), progress=progress, **given)
                return print_json(estimate) if form == "json" else _print_estimate(estimate)
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
        f"({percent(share.share_of_base)} of the base's, excluding the heads), in a file of {size(task.bytes)} "
        f"({percent(share.share_of_bytes)} of the base's)."
    )
    say(f"Next: taps-registry predict {name} IMAGE; taps-registry cost")
    return None


def _print_estimate(estimate: Estimate) -> None:
    """Least and most, by part; within a budget, what that allows instead of the most."""
    ends = [("at least", estimate.least, estimate.least_share)]
    if not estimate.allowed:
        ends.append(("at most", estimate.most, estimate.most_share))
    title = f"{estimate.task} with {estimate.method}, {estimate.encoding}"
    print_table(
        (title, "weights>", "norms>", "head>", "size>", "% params>"),
        (
            (
                what,
                number(found_size.params.weights),
                number(found_size.params.norms),
                number(found_size.params.head),
                size(found_size.bytes),
                percent(share),
            )
            for what, found_size, share in ends
        ),
    )
    for part in estimate.allowed:
        of_what = " of weights and norms" if part.budget.endswith("%") else ""
        say(f"--budget {part.budget} allows at most {part.amount:,} {part.unit}{of_what}.")
    say(f"Nothing was trained. {len(estimate.classes)} classes; sizes exclude the file's header.")
    if estimate.refused:
        say(estimate.refused)


def _same_base(is_on: str, named: str | None) -> None:
    if named is not None and named != is_on:
        raise click.UsageError(f"The run to resume is on the base {is_on!r}, not on {named!r}.")


def _accuracy(metrics: Any) -> str:
    if not metrics:
        return "accuracy not measured"
    if "test/accuracy" in metrics:
        return f"test accuracy {percent(metrics['test/accuracy'])}"
    return f"validation accuracy {percent(metrics['val/accuracy'])} (no test set)"


@click.command(cls=Verb)
@click.option("--base", metavar="B", help="Only tasks on this base.")
@format_option
@click.pass_obj
def tasks(session: Session, base: str | None, form: str) -> None:
    """List the tasks.

    \b
    Example:
      taps-registry tasks --base r50
    """
    with session.open() as registry:
        listed = registry.tasks(base)
    if form == "json":
        return print_json({"tasks": listed})
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
            for task in listed
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
    """Show the details of a task or a base.

    \b
    Example:
      taps-registry show cars
    """
    from ..registry.catalog.bases import not_found
    from ..registry.errors import NotFoundError

    with session.open() as registry:
        records: dict[str, Task | Base] = {}
        with suppress(NotFoundError):
            records["task"] = registry.task(name)
        with suppress(NotFoundError):
            records["base"] = registry.base(name)
        if not records:
            known = {task.name for task in registry.tasks()} | {base.name for base in registry.bases()}
            raise NotFoundError(not_found("task or base", name, sorted(known), "add-base"))
    if form == "json":
        return print_json(records)
    for what, record in records.items():
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
@click.option("--encoding", required=True, metavar="NAME", help=ENCODINGS)
@declared(TaskSettings, names=["encoding_tolerance"])
@declared(TaskSettings, names=["device"], help="Device on which accuracy is measured: auto, cpu, cuda, cuda:1, mps.")
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
    """Remove a task, finished or in training. `gc` frees its bytes; other tasks stay unchanged.

    \b
    Example:
      taps-registry remove cars
    """
    with session.open() as registry:
        registry.remove(task)
    say(f"Removed {task}. `taps-registry gc` frees its bytes.")
