"""A run made ready: settings checked, images opened, the base loaded, the model built."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ...plugins.guard import described
from ...plugins.methods import Method
from ..catalog import sets
from ..context import Context
from ..data.splits import open_data
from ..errors import IntegrityError, PluginError, SettingsError
from ..home import check_name
from ..models.bases import LoadedBase, load
from ..models.build import check_input
from ..records import Base, TaskSet
from ..store.artifact import low_rank_form_of
from ..store.tensors import read_tensors
from .budget import scarce, settle, what_is_left
from .device import make_accelerator
from .job import Job
from .limits import binding, limits
from .progress import Progress
from .settings import TaskSettings
from .trying import try_out


def check(context: Context, settings: TaskSettings) -> None:
    """Fail before anything is opened: on settings, the device, and the plugins that they name.

    Raises:
        SettingsError, PluginError
    """
    settings.check()
    if settings.set:
        check_name(settings.set, "set")
    make_accelerator(settings.device, settings.precision)
    settings.check_method(context.plugins.method(settings.method))
    context.plugins.encoding(settings.encoding_before)
    context.plugins.tracker(settings.tracker)


@dataclass(frozen=True)
class Prepared:
    """A run ready to begin: the base it starts from, and what to train."""

    base: LoadedBase
    job: Job


def prepare(
    context: Context, record: Base, settings: TaskSettings, progress: Progress, task: str, *, begun: bool = False
) -> Prepared:
    """Open the images and the base, and build the model. Nothing is written.

    Args:
        context: of the registry.
        record: of the base.
        settings: of the run.
        progress: who is told.
        task: its name; a resumed one may be the first of its set.
        begun: whether its run has begun with this budget, and so with what the registry's budgets had left then.

    Raises:
        BudgetError, DataError, IntegrityError, PluginError, SettingsError
    """
    with context.catalog.read() as session:
        settings = replace(settings, budget=settle(session, record.name, settings.budget))
        left = () if begun else what_is_left(session, record.name)
    data = open_data(
        settings.data,
        settings.val_data,
        settings.test_data,
        seed=settings.seed,
        skip_bad_images=settings.skip_bad_images,
        progress=progress.checking,
    )
    for note in data.notes:
        progress.note(note)
    _require_enough(settings, len(data.train))
    base = load(context, record)
    model = base.fresh_model(len(data.classes), settings.seed)
    config = record.input
    if settings.input_size:
        config = replace(config, size=(config.size[0], settings.input_size, settings.input_size))
        check_input(model, config)
    partition = base.partition(model)
    method = context.plugins.method(settings.method)
    settings = replace(settings, options=vars(settings.method_options(method)))
    joined = _extend(context, record, settings, method, model, task)
    lr = context.plugins.architecture(record.plugin).learning_rate
    job = Job(
        settings=settings,
        model=model,
        partition=partition,
        method=method,
        method_settings=settings.for_method(method, lr, train_common=joined is None or not joined.digest),
        encoding=context.plugins.encoding(settings.encoding_before),
        data=data,
        input=config,
        backbone_params=record.backbone_params,
        folder=Path(),
        set=joined,
    )
    for part in binding(job, left):
        progress.note(
            f"The budgets of the registry have {int(part.value):,} {part.unit} left, less than --budget "
            f"{settings.budget} allows: {task!r} keeps to that as well."
        )
        job = replace(job, settings=replace(job.settings, budget=f"{job.settings.budget},{part.text}"))
    try_out(job)
    method_settings = replace(
        job.method_settings, limits=limits(job), low_rank_form=low_rank_form_of(job.encoding, context.plugins)
    )
    job = replace(job, method_settings=method_settings)
    if not begun and (note := scarce(job, task)):
        progress.note(note)
    return Prepared(base, job)


def _require_enough(settings: TaskSettings, images: int) -> None:
    """Every process needs a whole batch a step. Raises SettingsError."""
    wanted = settings.processes * settings.batch_size
    if settings.processes > 1 and images < wanted:
        raise SettingsError(
            f"{settings.processes} processes with --batch-size {settings.batch_size} need {wanted} training images, "
            f"there are {images}: use fewer --processes or a smaller --batch-size."
        )


def _extend(
    context: Context, record: Base, settings: TaskSettings, method: Method, model: nn.Module, task: str
) -> TaskSet | None:
    """Add the modules of a method that does not fold; what the task's set has in common already is loaded into them.

    Raises:
        SettingsError: if the set is one of another method or width.
        BusyError: if another task is training what the set has in common.
    """
    arguments = method.extension(settings.for_method(method, 0.0))
    if not arguments:
        return None
    try:
        json.dumps(arguments)
    except (TypeError, ValueError) as error:
        raise PluginError(f"{described(method)} returned from extension what JSON cannot hold: {error}.") from error
    name = settings.set or method.name
    with context.catalog.read() as session:
        existing = sets.find(session, record.name, name)
    if existing is not None:
        sets.require_fit(existing, method.name, arguments, task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        method.extend(model, arguments)
    if existing is None or not existing.digest:
        return TaskSet(name, method.name, arguments)
    stored = read_tensors(context.store.get(existing.digest))
    if set(stored) != method.common(model):
        raise IntegrityError(f"The object {existing.digest} does not hold what tasks of {name!r} have in common.")
    model.load_state_dict(stored, strict=False)
    return existing
