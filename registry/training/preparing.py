"""A run made ready: settings checked, images opened, the base loaded, the model built."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..context import Context
from ..models.bases import LoadedBase, load
from ..models.build import check_input
from ..records import Base
from .data import open_data
from .loop import Job, make_accelerator
from .progress import Progress
from .settings import TaskSettings


def check(context: Context, settings: TaskSettings) -> None:
    """Fail before anything is opened: on settings, the device, and the plugins that they name.

    Raises:
        SettingsError, PluginError
    """
    settings.check()
    make_accelerator(settings.device, settings.precision)
    settings.check_method(context.plugins.method(settings.method))
    context.plugins.encoding(settings.encoding)
    context.plugins.tracker(settings.tracker)


@dataclass(frozen=True)
class Prepared:
    """A run ready to begin: the base it starts from, and what to train."""

    base: LoadedBase
    job: Job


def prepare(context: Context, record: Base, settings: TaskSettings, progress: Progress) -> Prepared:
    """Open the images and the base, and build the model. Nothing is written.

    Raises:
        DataError, IntegrityError, PluginError, SettingsError
    """
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
    base = load(context, record)
    model = base.fresh_model(len(data.classes), settings.seed)
    config = record.input
    if settings.input_size:
        config = replace(config, size=(config.size[0], settings.input_size, settings.input_size))
        check_input(model, config)
    job = Job(
        settings=settings,
        model=model,
        partition=base.partition(model),
        method=context.plugins.method(settings.method),
        encoding=context.plugins.encoding(settings.encoding),
        data=data,
        input=config,
        lr=context.plugins.architecture(record.plugin).learning_rate,
        backbone_params=record.backbone_params,
        folder=Path(),
    )
    return Prepared(base, job)
