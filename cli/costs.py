"""Costs: cost, budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .options import Amount
from .output import counted, number, percent, print_json, print_table, say, size
from .session import Session, Verb, common_options, format_option
from .terminal import echo

if TYPE_CHECKING:
    from ..registry.records import BaseCost, BudgetUse, CostReport


@click.command(cls=Verb)
@click.argument("tasks", nargs=-1, metavar="[TASK]...")
@click.option("--base", metavar="B", help="Only this base.")
@click.option(
    "--by",
    type=click.Choice(["task", "layer", "kind"]),
    default="task",
    show_default=True,
    help="Add a breakdown by layer or kind.",
)
@format_option
@click.pass_obj
def cost(session: Session, tasks: tuple[str, ...], base: str | None, by: str, form: str) -> None:
    """Show what each task costs, and the total.

    \b
    Examples:
      taps-registry cost
      taps-registry cost cars birds --by layer --format json
    """
    with session.open() as registry:
        report = registry.cost(tasks, base=base, by=by)
    if form == "json":
        return print_json(report)
    return print_report(report, by)


def print_report(report: CostReport, by: str) -> None:
    """A table per base, its totals, and its budget."""
    if not report.bases:
        say("There are no bases yet. Type: taps-registry add-base --help")
    for base in report.bases:
        _print_base(base)
        if by != "task":
            _print_breakdown(base, by)
    if report.budget:
        say(_usage(report.budget))


def _print_base(cost: BaseCost) -> None:
    from .tasks import accuracy

    print_table(
        ("task", "method", "open>", "weights>", "norms>", "head>", "% params>", "size>", "% bytes>", "accuracy>"),
        (
            ("(base) " + cost.base, "", "", number(cost.params), "", "", "100.0 %", size(cost.bytes), "100.0 %", ""),
            *(
                (
                    task.task,
                    task.method,
                    f"{task.open_layers}/{task.layers}",
                    number(task.params.weights),
                    number(task.params.norms),
                    number(task.params.head),
                    percent(task.share_of_base),
                    size(task.bytes),
                    percent(task.share_of_bytes),
                    accuracy(task.metrics),
                )
                for task in cost.tasks
            ),
        ),
        total=(
            "total",
            "",
            "",
            number(cost.total.params),
            "",
            "",
            percent(cost.total.multiple),
            size(cost.total.bytes),
            percent(cost.total.multiple_of_bytes),
            "",
        ),
    )
    for shared in cost.sets:
        echo(
            f"{shared.name}: {number(shared.params)} parameters, {size(shared.bytes)}, stored once for "
            f"{', '.join(shared.tasks)}."
        )
    tasks = counted(len(cost.tasks), "task")
    echo(
        f"{cost.base} with {tasks}: {cost.total.multiple:.2f} times the base's parameters, "
        f"{cost.total.multiple_of_bytes:.2f} times its bytes; "
        f"a full copy per task: {cost.total.multiple_if_copied:.2f} times."
    )
    if cost.budget:
        echo(_usage(cost.budget))


def _print_breakdown(cost: BaseCost, by: str) -> None:
    print_table(
        (by, *(["kind"] if by == "layer" else []), "layers>", "stored>", "base params>", "task params>", "size>"),
        (
            (
                row.name,
                *([row.kind] if by == "layer" else []),
                row.layers,
                row.open,
                number(row.params),
                number(row.task_params),
                size(row.task_bytes),
            )
            for row in cost.by
        ),
    )


@click.group()
def budget() -> None:
    """Limit what the tasks of a base, or of the whole registry, may store.

    \b
    Example:
      taps-registry budget set --base r50 --max-bytes 2GB
    """


budget.params.extend(common_options())


@budget.command(cls=Verb, name="set")
@click.option("--base", metavar="B", help="Base that the budget is for. Default: the whole registry.")
@click.option("--max-bytes", type=Amount("bytes"), metavar="2GB", help="Limit on the total bytes of all tasks.")
@click.option("--max-params", type=Amount("params"), metavar="10M", help="Limit on the total parameters of all tasks.")
@format_option
@click.pass_obj
def set_budget(session: Session, base: str | None, max_bytes: int | None, max_params: int | None, form: str) -> None:
    """Set or replace a budget.

    \b
    Example:
      taps-registry budget set --base r50 --max-bytes 2GB --max-params 100M
    """
    with session.open() as registry:
        _print_budgets(registry.set_budget(base=base, max_bytes=max_bytes, max_params=max_params), form)


@budget.command(cls=Verb, name="show")
@click.option("--base", metavar="B", help="Only this base.")
@format_option
@click.pass_obj
def show_budget(session: Session, base: str | None, form: str) -> None:
    """Show every budget and how much of it is used.

    \b
    Example:
      taps-registry budget show
    """
    with session.open() as registry:
        if base:
            registry.base(base)
        uses = registry.budgets()
    _print_budgets(tuple(use for use in uses if base is None or use.base == base), form)


@budget.command(cls=Verb, name="clear")
@click.option("--base", metavar="B", help="Base that the budget is for. Default: the whole registry.")
@click.pass_obj
def clear_budget(session: Session, base: str | None) -> None:
    """Remove a budget.

    \b
    Example:
      taps-registry budget clear --base r50
    """
    with session.open() as registry:
        there_was = registry.clear_budget(base=base)
    scope = f"the base {base}" if base else "the registry"
    say(f"Removed the budget of {scope}." if there_was else f"No budget was set for {scope}.")


def _print_budgets(uses: tuple[BudgetUse, ...], form: str) -> None:
    if form == "json":
        return print_json({"budgets": uses})
    if not uses:
        return say("There are no budgets. Type: taps-registry budget set --help")
    return print_table(
        ("budget of", "bytes used>", "max bytes>", "parameters used>", "max parameters>"),
        (
            (
                use.base or "(registry)",
                size(use.used_bytes),
                _limit(use.max_bytes, size),
                number(use.used_params),
                _limit(use.max_params, number),
            )
            for use in uses
        ),
    )


def _limit(limit: int | None, shown: Any) -> str:
    return "" if limit is None else str(shown(limit))


def _usage(use: BudgetUse) -> str:
    parts = []
    if use.max_bytes is not None:
        parts.append(f"{size(use.used_bytes)} of {size(use.max_bytes)}")
    if use.max_params is not None:
        parts.append(f"{number(use.used_params)} of {number(use.max_params)} parameters")
    return f"Budget of {use.base or 'the registry'}: {', '.join(parts)} used."
