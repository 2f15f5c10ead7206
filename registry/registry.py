"""The registry as Python sees it; the command line calls nothing else.

Every method is one verb. What it needs of torch or timm is imported when it is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..plugins.manager import PluginInfo
from . import home as homes
from . import opening, upkeep, verifying
from .catalog import bases, budgets, costs, runs, tasks
from .context import Context
from .errors import BusyError, SettingsError
from .folders import is_alive
from .records import Base, BudgetUse, Collected, CostReport, Estimate, Evaluation, Prediction, Problem, Run, Task

if TYPE_CHECKING:
    from typing import Unpack

    from .inference.task_model import TaskModel
    from .training.progress import Progress
    from .training.settings import ResumeOptions, TaskOptions


LARGEST = 2**63 - 1  # what the catalog's columns hold


class Registry:
    """An open registry. Make one with ``Registry.init`` or ``Registry.open``; close it, or use it with ``with``."""

    def __init__(self, context: Context) -> None:
        self._context = context

    # Opening

    @classmethod
    def init(
        cls, home: str | Path = homes.FOLDER, *, database: str = "", disabled_plugins: Iterable[str] = ()
    ) -> Registry:
        """Make a registry, or finish one whose making was interrupted; an existing one is opened.

        Args:
            home: the folder to make.
            database: URL of the catalog; empty for SQLite inside the folder.
            disabled_plugins: names of plugins to pass over.

        Raises:
            SettingsError: for a URL we cannot use.
            HomeError: if the database belongs to another registry.
        """
        return cls(opening.init(Path(home), database, disabled_plugins))

    @classmethod
    def open(
        cls, home: str | Path | None = None, *, database: str = "", disabled_plugins: Iterable[str] = ()
    ) -> Registry:
        """Open a registry.

        Args:
            home: its folder; None for the nearest ``.taps`` at or above the working directory.
            database: URL of the catalog; empty for SQLite inside the folder.
            disabled_plugins: names of plugins to pass over.

        Raises:
            HomeError: if there is none, or the database belongs to another registry.
            SchemaError: if there is no catalog, or one of another version.
        """
        return cls(opening.open_existing(home, database, disabled_plugins))

    @classmethod
    def upgrade(cls, home: str | Path | None = None, *, database: str = "") -> tuple[str | None, str]:
        """Bring the catalog's schema to this version's; nothing else migrates an existing catalog.

        Returns:
            The revisions before and after.

        Raises:
            HomeError: if there is no registry.
            SchemaError: if there is no catalog, or one whose revision this version does not know.
        """
        return opening.upgrade(home, database)

    def close(self) -> None:
        """Close the connections to the catalog."""
        self._context.catalog.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def home(self) -> Path:
        """The registry's folder."""
        return self._context.home.root

    # Bases

    def add_base(
        self,
        name: str,
        model: str,
        *,
        weights: str | Path | None = None,
        pretrained: bool = False,
        random_init: bool = False,
        arguments: Mapping[str, Any] | None = None,
        input_size: int | None = None,
        plugin: str | None = None,
        seed: int = 0,
    ) -> Base:
        """Put a timm model into the registry; exactly one of ``weights``, ``pretrained`` and ``random_init``.

        Args:
            name: of the base.
            model: timm's name.
            weights: a ``.safetensors`` file, or a ``.pth`` that is read with ``weights_only=True``.
            pretrained: take timm's pretrained weights, from the hub or its cache.
            random_init: leave the weights as they are initialised under ``seed``.
            arguments: further arguments of ``timm.create_model``.
            input_size: pixels, if not the model's own.
            plugin: architecture plugin, if more than one fits.
            seed: of the initialisation.

        Raises:
            SettingsError, NameTakenError, WeightsError, PluginError, StorageError
        """
        if sum((weights is not None, pretrained, random_init)) != 1:
            raise SettingsError(
                "Specify the source of the weights: one of --weights FILE, --pretrained, --random-init."
            )
        from .models.bases import Source, add

        source = Source(Path(weights) if weights is not None else None, pretrained, seed)
        return add(self._context, name, model, source, arguments or {}, input_size, plugin)

    def bases(self) -> tuple[Base, ...]:
        """Every base, by name."""
        with self._context.catalog.read() as session:
            return bases.listing(session)

    def base(self, name: str) -> Base:
        """A base with its layers. Raises NotFoundError."""
        with self._context.catalog.read() as session:
            return bases.get(session, name)

    def remove_base(self, name: str) -> None:
        """Remove a base that no task is on, with its budget; ``gc`` frees its bytes.

        Raises:
            NotFoundError: if there is none of this name.
            SettingsError: if tasks are on it, finished or in training.
        """
        with self._context.catalog.write() as session:
            bases.remove(session, name)

    # Tasks

    def add_task(
        self,
        name: str,
        base: str,
        data: str | Path,
        *,
        progress: Progress | None = None,
        **settings: Unpack[TaskOptions],
    ) -> Task:
        """Train a task on a base and add it.

        Args:
            name: of the task, unique in the registry.
            base: name of the base.
            data: a folder of class folders, or ``SCHEME/NAME[@ROOT]``.
            progress: who is told; nobody by default.
            settings: the options of ``add-task``, see ``training.settings.TaskSettings``.

        Raises:
            SettingsError, NotFoundError, NameTakenError, DataError, BudgetError: before anything is written.
            TrainingError, BudgetError, Interrupted: later; ``resume_task`` goes on.
        """
        from .training.adding import add_task
        from .training.progress import Progress as Quiet
        from .training.settings import TaskSettings

        checked = TaskSettings.of(_absolute_data({"data": data, **settings}))
        return add_task(self._context, name, base, checked, progress or Quiet())

    def estimate(
        self,
        name: str,
        base: str,
        data: str | Path,
        *,
        progress: Progress | None = None,
        **settings: Unpack[TaskOptions],
    ) -> Estimate:
        """What ``add_task`` with the same arguments would store at least and at most; nothing is trained or written.

        Raises:
            SettingsError, NotFoundError, NameTakenError, DataError, PluginError
        """
        from .training.estimating import estimate
        from .training.progress import Progress as Quiet
        from .training.settings import TaskSettings

        checked = TaskSettings.of(_absolute_data({"data": data, **settings}))
        return estimate(self._context, name, base, checked, progress or Quiet())

    def resume_task(self, name: str, *, progress: Progress | None = None, **changes: Unpack[ResumeOptions]) -> Task:
        """Go on with a task that was interrupted, failed, or did not fit its budget.

        Args:
            name: of the task.
            progress: who is told; nobody by default.
            changes: settings that shall be other than before. Another ``lr``, ``weight_decay``, ``budget``,
                ``sparsity``, ``penalty``, ``threshold`` or ``score_lr``, and within a budget another ``encoding``,
                trains again from the weights reached; more ``epochs`` go on to them.

        Raises:
            NotFoundError: if there is nothing to resume.
            SettingsError: for a change that would make it another run, or for fewer epochs than are behind it.
            BusyError: if it is being trained right now.
        """
        from .training.adding import resume_task
        from .training.progress import Progress as Quiet

        return resume_task(self._context, name, _absolute_data(changes), progress or Quiet())

    def tasks(self, base: str | None = None) -> tuple[Task, ...]:
        """Every task, or those on one base, without their layers. Raises NotFoundError for an unknown base."""
        with self._context.catalog.read() as session:
            return tasks.listing(session, base)

    def task(self, name: str) -> Task:
        """A task with its layers. Raises NotFoundError."""
        with self._context.catalog.read() as session:
            return tasks.get(session, name)

    def recode(
        self,
        task: str,
        encoding: str,
        *,
        encoding_tolerance: float = 0.2,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> Task:
        """Store a task in another encoding, as a new version of it. Nothing is trained.

        Its accuracy is measured anew if the images that it was trained with are still where they were, else the new
        version has no metrics. ``gc`` frees the bytes of the earlier version.

        Args:
            task: name of it.
            encoding: name of an encoding, or ``auto``.
            encoding_tolerance: points of validation accuracy that ``auto`` may lose.
            device: that accuracy is measured on.
            progress: who is told; nobody by default.

        Raises:
            SettingsError, NotFoundError, PluginError: before anything is read.
            DataError: if ``auto`` cannot measure, since the images are gone or others.
            BudgetError: if it takes more bytes than the budgets leave.
            IntegrityError: if its bytes or the base's are missing or damaged.
            BusyError: if another process replaced the task in the meantime.
        """
        from .recoding import recode
        from .training.progress import Progress as Quiet

        changes = {"encoding": encoding, "encoding_tolerance": encoding_tolerance, "device": device}
        return recode(self._context, task, changes, progress or Quiet())

    def remove(self, name: str) -> None:
        """Remove a task; ``gc`` frees its bytes.

        Raises:
            NotFoundError: if there is none of this name.
            BusyError: if it is being trained right now.
        """
        with self._context.catalog.write() as session:
            run = runs.of_task(session, name)
            if run is not None and is_alive(self._context.home, run.id):
                raise BusyError(f"The task {name!r} is being trained right now; stop that process first.")
            tasks.remove(session, name)

    # Costs and budgets

    def cost(self, tasks: Sequence[str] = (), *, base: str | None = None, by: str = "task") -> CostReport:
        """The cost of tasks in parameters and bytes.

        Args:
            tasks: names; all of them if empty.
            base: one base only.
            by: ``layer`` or ``kind`` to add what the tasks store of each.

        Raises:
            NotFoundError: for an unknown name, or a task that is still in training.
            SettingsError: for another ``by``, or a task that is not on ``base``.
        """
        with self._context.catalog.read() as session:
            return costs.report(session, tasks, base, by)

    def set_budget(
        self, *, base: str | None = None, max_bytes: int | None = None, max_params: int | None = None
    ) -> tuple[BudgetUse, ...]:
        """Limit what the tasks of a base, or of the whole registry, may take. Replaces an earlier budget.

        Raises:
            SettingsError: without any limit, or for a negative one.
            NotFoundError: for an unknown base.
        """
        limits = [limit for limit in (max_bytes, max_params) if limit is not None]
        if not limits or min(limits) < 0 or max(limits) > LARGEST:
            raise SettingsError(f"A budget needs --max-bytes or --max-params, at least 0 and at most {LARGEST:,}.")
        with self._context.catalog.write() as session:
            budgets.put(session, base, max_bytes, max_params)
        return self.budgets()

    def budgets(self) -> tuple[BudgetUse, ...]:
        """Every budget and what is used of it."""
        with self._context.catalog.read() as session:
            return budgets.listing(session)

    def clear_budget(self, *, base: str | None = None) -> bool:
        """Remove a budget; False if there was none. Raises NotFoundError for an unknown base."""
        with self._context.catalog.write() as session:
            return budgets.clear(session, base)

    def report(self, *, base: str | None = None) -> str:
        """The registry, or one base of it, as a page of HTML: stored layers, costs and accuracy.

        Raises:
            NotFoundError: for an unknown base.
        """
        from .reporting.collecting import collect
        from .reporting.page import render

        return render(collect(self._context, base))

    # Using tasks

    def load(self, task: str, *, device: str = "auto") -> TaskModel:
        """A task ready to predict; two tasks share nothing that one of them could change.

        Raises:
            NotFoundError: if there is none of this name, or it is in training.
            IntegrityError: if its bytes or the base's are missing or damaged.
        """
        from .inference.task_model import load

        return load(self._context, task, device)

    def predict(
        self, task: str, images: Sequence[str | Path], *, top: int = 1, device: str = "auto"
    ) -> tuple[Prediction, ...]:
        """The ``top`` most likely classes of each image file. Raises what ``load`` raises, and DataError."""
        return self.load(task, device=device).predict([Path(image) for image in images], top)

    def evaluate(
        self,
        task: str,
        data: str | Path,
        *,
        split: str = "",
        skip_bad_images: bool = False,
        confusion: str | Path | None = None,
        predictions: str | Path | None = None,
        batch_size: int = 64,
        workers: int = 0,
        device: str = "auto",
    ) -> Evaluation:
        """How right a task is on labelled images.

        Args:
            task: name of it.
            data: as ``add_task`` takes it.
            split: ``test``, ``val``, ``train`` or ``all``. By default the test split, else the validation split, else
                all of a folder without splits; never images that the task was trained with, as far as these are known.
            skip_bad_images: leave unreadable images out instead of refusing them.
            confusion: a ``.csv`` or ``.png`` file to write the confusion matrix to.
            predictions: a CSV file to write the prediction of each image to.
            batch_size: images at a time.
            workers: processes that load images.
            device: to compute on.

        Raises:
            SettingsError: for another split, or another ending of ``confusion``.
            DataError: for unreadable images, a class that the task does not know, or no images of the split.
            StorageError: if a file cannot be written. Otherwise what ``load`` raises.
        """
        from .inference.evaluation import evaluate_task

        return evaluate_task(
            self._context,
            task,
            str(data),
            split=split,
            skip_bad_images=skip_bad_images,
            confusion=None if confusion is None else Path(confusion),
            predictions=None if predictions is None else Path(predictions),
            batch_size=batch_size,
            workers=workers,
            device=device,
        )

    def export(self, task: str, path: str | Path) -> str:
        """Write a task as a plain timm checkpoint (``.safetensors``) or as a program of ``torch.export`` (``.pt2``).

        Returns:
            The Python that loads it, with the same logits bit for bit.

        Raises:
            SettingsError: for another ending, or a checkpoint of a method that adds modules to the model. Otherwise
                what ``load`` raises.
        """
        from .inference.compose import compose_task
        from .inference.export import export

        _, base, composed = compose_task(self._context, task)
        return export(composed, base, Path(path))

    # Upkeep

    def gc(self, *, dry_run: bool = False) -> Collected:
        """Remove what nothing refers to; with ``dry_run`` only say what that is."""
        return upkeep.collect(self._context, dry_run=dry_run)

    def verify(self, *, deep: bool = False) -> tuple[Problem, ...]:
        """Check stored files against the catalog; with ``deep`` read every byte. Empty if all is well."""
        return verifying.verify(self._context, deep=deep)

    def runs(self, task: str | None = None) -> tuple[Run, ...]:
        """Every run, or those of one task, newest first; one whose process died is listed as interrupted.

        Raises:
            NotFoundError: if there never was a task of this name.
        """
        with self._context.catalog.read() as session:
            listed = runs.listing(session, task)
            if task is not None and not listed:
                tasks.get(session, task)  # raises if there never was such a task
        return tuple(
            replace(run, state="interrupted")
            if run.state == "running" and not is_alive(self._context.home, run.id)
            else run
            for run in listed
        )

    def plugins(self) -> tuple[PluginInfo, ...]:
        """Every plugin that was found, with its state."""
        return self._context.plugins.plugins()


def _absolute_data(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose paths mean the same when the run is resumed from another folder."""
    from .data.sources import absolute

    named = {name: value for name, value in settings.items() if name in ("data", "val_data", "test_data") and value}
    return {**settings, **{name: absolute(str(value)) for name, value in named.items()}}
