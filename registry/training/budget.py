"""``--budget``: what it says, and whether a run can end, or has ended, within it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..amounts import REMAINING, Amount, parse
from ..catalog import bases, budgets
from ..errors import BudgetError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ...plugins.methods import MethodSettings, Stored
    from ...plugins.methods.limits import Limit
    from .job import Job

MOST = 0.5  # of a budget, taken by the cheapest outcome: what is left for layers is scarce


def settle(session: Session, base: str, text: str) -> str:
    """The same budget with ``remaining/N`` put into numbers, which later tasks do not change.

    Args:
        session: of the catalog.
        base: name of the base.
        text: of the budget.

    Raises:
        BudgetError: if nothing is left, or there is no budget to take a part of.
        SettingsError: for what is no budget.
    """
    settled: list[str] = []
    for part in parse(text):
        settled.extend(_remaining(session, base, int(part.value)) if part.unit == "remaining" else [part.text])
    return ",".join(settled)


def _remaining(session: Session, base: str, tasks: int) -> list[str]:
    left = what_is_left(session, base)
    if not left:
        raise BudgetError(
            f"--budget {REMAINING}{tasks} is a part of what a budget has left, and neither the registry nor the base "
            f"{base!r} has one: `taps-registry budget set --base {base} --max-bytes 2GB`, or give --budget an amount."
        )
    for part in left:
        if part.value < tasks:
            raise BudgetError(
                f"The budget of the base {base!r} or of the registry has {max(0, int(part.value)):,} {part.unit} left: "
                f"nothing that could be divided by {tasks}."
            )
    return [_text(int(part.value) // tasks, part.unit) for part in left]


def what_is_left(session: Session, base: str) -> tuple[Amount, ...]:
    """Bytes and parameters that the budgets of a base and of the registry have left; below 0 if they are overdrawn."""
    uses = budgets.for_base(session, bases.row(session, base))
    return tuple(
        Amount(limit - used, unit, _text(limit - used, unit))
        for use in uses
        for limit, used, unit in (
            (use.max_bytes, use.used_bytes, "bytes"),
            (use.max_params, use.used_params, "parameters"),
        )
        if limit is not None
    )


def _text(value: int, unit: str) -> str:
    return f"{value}B" if unit == "bytes" else str(value)


def require_fit(job: Job, task: str) -> None:
    """Return if a run can end within the job's budget.

    Raises:
        BudgetError: if not even the cheapest outcome fits; or not the dearest one of a method that cannot steer.
    """
    method, settings = job.method, job.method_settings
    steers = method.fits_limits
    stored = (method.least if steers else method.most)(job.model, job.partition, settings)
    outcome = "least" if steers else "most"
    for limit, part in zip(settings.limits, parse(job.settings.budget), strict=True):
        used = limit.used(stored)
        if used > limit.amount:
            raise BudgetError(
                f"--budget {part.text} leaves {max(0, limit.amount):,} {limit.unit} for {task!r}, and what it stores "
                f"at {outcome} takes {used:,}: {used - limit.amount:,} too many. What helps: "
                f"{_remedies(limit, settings) if steers else 'a larger budget, another --method, such as taps'}."
            )


def scarce(job: Job, task: str) -> str:
    """What to say of a budget most of which goes to what is stored in any case, such as norms; empty for others."""
    method, settings = job.method, job.method_settings
    if not method.fits_limits:
        return ""
    cheapest = method.least(job.model, job.partition, settings)
    for limit, part in zip(settings.limits, parse(job.settings.budget), strict=True):
        share = limit.used(cheapest) / max(1, limit.amount)
        if MOST < share <= 1:
            return (
                f"{share:.0%} of --budget {part.text} goes to what {task!r} stores in any case, such as norms, and "
                f"little is left for its layers. What helps: {_remedies(limit, settings)}."
            )
    return ""


def _remedies(limit: Limit, settings: MethodSettings) -> str:
    """What to type so that the cheapest outcome of a method that steers takes less of its budget."""
    fewer_bits = ["an --encoding of fewer bits"] if limit.in_bytes else []
    no_norms = ["--norms frozen"] if getattr(settings.options, "norms", "") == "task" else []
    return ", ".join(["a larger budget", *fewer_bits, *no_norms])


def require_kept(job: Job, stored: Stored, file: int, task: str) -> None:
    """Return if what is to be stored is within the job's budget.

    Args:
        job: of the task.
        stored: what its artifact holds.
        file: bytes of the artifact.
        task: its name.

    Raises:
        BudgetError
    """
    for limit, part in zip(job.method_settings.limits, parse(job.settings.budget), strict=True):
        in_file = part.unit == "bytes"
        used, allowed = (file, int(part.value)) if in_file else (limit.used(stored), limit.amount)
        if used > allowed or not limit.holds(stored):
            raise BudgetError(
                f"What was trained for {task!r} takes {used:,} {limit.unit}; --budget {part.text} allows {allowed:,}."
            )
