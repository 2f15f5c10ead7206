"""What a task would store at least and at most, before it trains."""

from __future__ import annotations

from ..amounts import parse
from ..catalog import bases, budgets, tasks
from ..context import Context
from ..errors import BudgetError
from ..home import check_name
from ..records import Allowance, Estimate, Footprint
from .budget import require_fit
from .job import Job
from .preparing import check, prepare
from .progress import Progress
from .settings import TaskSettings


def estimate(context: Context, name: str, base: str, settings: TaskSettings, progress: Progress) -> Estimate:
    """Do all that comes before training, and say what could come of it. Nothing is written.

    Raises:
        SettingsError, NotFoundError, NameTakenError, DataError, PluginError
    """
    check_name(name, "task")
    check(context, settings)
    with context.catalog.read() as session:
        record = bases.get(session, base)
        tasks.require_free(session, name)
    job = prepare(context, record, settings, progress, name).job
    cheapest, dearest = least(job), most(job)
    return Estimate(
        task=name,
        base=base,
        method=job.method.name,
        encoding=settings.encoding,
        classes=tuple(job.data.classes),
        least=cheapest,
        most=dearest,
        least_share=_share(cheapest, job),
        most_share=_share(dearest, job),
        refused=_refused(context, name, base, job, cheapest),
        allowed=tuple(
            Allowance(part.text, limit.amount, limit.unit)
            for limit, part in zip(job.method_settings.limits, parse(job.settings.budget), strict=True)
        ),
    )


def least(job: Job) -> Footprint:
    """The cheapest outcome of a job."""
    return job.prices.footprint(job.method.least(job.model, job.partition, job.method_settings))


def most(job: Job) -> Footprint:
    """The dearest outcome of a job."""
    return job.prices.footprint(job.method.most(job.model, job.partition, job.method_settings))


def _share(size: Footprint, job: Job) -> float:
    return (size.params.weights + size.params.norms) / job.backbone_params


def _refused(context: Context, name: str, base: str, job: Job, cheapest: Footprint) -> str:
    """What the budgets say to the cheapest outcome."""
    with context.catalog.read() as session:
        try:
            require_fit(job, name)
            row = bases.row(session, base)
            budgets.require_room(session, row, cheapest.params.total, cheapest.bytes, name, at_least=True)
        except BudgetError as error:
            return str(error)
    return ""
