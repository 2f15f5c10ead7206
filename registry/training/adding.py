"""Adding a task, from its name to the catalog: the way of one task through the house.

1. The name is free, the base known, the settings make sense.
2. The images are opened, checked and fingerprinted.
3. One transaction reserves the name and holds the cheapest outcome against the budgets.
4. Training, a checkpoint each epoch.
5. The best epoch becomes an artifact, and is measured as that file reads back.
6. Under the registry's lock the file enters the store, and one transaction holds it against the budgets again and
   makes the task ready. A crash before leaves a run that can be resumed; a crash after, a finished task.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...plugins.options import options_of
from ...plugins.trackers import RunInfo
from ..catalog import bases, budgets, runs, sets, tasks
from ..context import Context
from ..data.workers import WorkersDiedError
from ..errors import (
    BudgetError,
    BusyError,
    DataError,
    IntegrityError,
    Interrupted,
    NotFoundError,
    PluginError,
    SettingsError,
    StorageError,
    TapsError,
    WeightsError,
)
from ..folders import HISTORY, drop, drop_drafts, drop_weights, held
from ..home import check_name
from ..records import Footprint, Task
from ..reporting.shares import stored_shares
from .budget import require_fit, require_kept
from .estimating import least
from .job import Outcome
from .loop import CHECKPOINT
from .preparing import Prepared, check, prepare
from .processes import train
from .progress import EpochResult, Progress
from .result import describe, measure_file, smallest, write
from .settings import AUTO, TaskSettings
from .tracking import Following

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

LASTING = (PluginError, SettingsError, IntegrityError, WeightsError)  # what would be the same in a resumed run


def add_task(context: Context, name: str, base: str, settings: TaskSettings, progress: Progress) -> Task:
    """Train a task and add it. See the module for the steps.

    Raises:
        SettingsError, NotFoundError, NameTakenError, DataError, BudgetError: before anything is written.
        TrainingError, BudgetError, Interrupted: afterwards; the run can be resumed.
    """
    check_name(name, "task")
    check(context, settings)
    with context.catalog.read() as session:
        record = bases.get(session, base)
        tasks.require_free(session, name)
    prepared = prepare(context, record, settings, progress, name)
    run = uuid.uuid4().hex
    with held(context.home, run) as folder:
        try:
            _reserve(context, name, run, prepared)
        except TapsError:
            drop(context.home, run)
            raise
        return _TrainingRun(context, name, run, folder, prepared, progress).carry_out(fresh=True)


def resume_task(context: Context, name: str, changes: Mapping[str, Any], progress: Progress) -> Task:
    """Go on with a task whose run was interrupted, failed, or did not fit its budget.

    Args:
        context: of the registry.
        name: of the task.
        changes: settings that shall be other than before; which ones may be is up to ``TaskSettings.changed``.
        progress: who is told.

    Raises:
        NotFoundError: if there is nothing to resume.
        BusyError: if a process is training it.
        SettingsError: for a change that would make it another run, or for fewer epochs than are behind it.
        DataError: if the images are not those that the run began with.
    """
    with context.catalog.read() as session:
        task = tasks.get(session, name)
        run = runs.of_task(session, name)
        record = bases.get(session, task.base)
    if run is None:
        raise NotFoundError(f"The task {name!r} is finished: there is nothing to resume.")
    with held(context.home, run.id) as folder:
        drop_drafts(folder)
        with context.catalog.read() as session:
            now = runs.of_task(session, name)
        if now is None or now.id != run.id:
            raise BusyError(f"The task {name!r} was finished or removed by another process just now.")
        before = TaskSettings.stored(run.settings, name)
        method = context.plugins.method(before.method)
        settings = before.changed(changes, method)
        check(context, settings)
        if settings.epochs < run.epoch and settings.trained_under(method) == before.trained_under(method):
            raise SettingsError(
                f"The run of {name!r} has {run.epoch} epochs behind it: --epochs must be at least that, got "
                f"{settings.epochs}."
            )
        prepared = prepare(context, record, settings, progress, name, begun=settings.budget == before.budget)
        if prepared.job.data.fingerprint != run.fingerprint:
            raise DataError(
                f"The images in {settings.data} are not those that the run of {name!r} began with. Put them back, or "
                f"`taps-registry remove {name}` and add it anew."
            )
        require_fit(prepared.job, name)
        cheapest = least(prepared.job)
        with context.catalog.write() as session:
            _require_room(session, record.name, cheapest, name)
            runs.update(session, run.id, state="running", settings=prepared.job.settings.as_json(), error="")
        training = _TrainingRun(context, name, run.id, folder, prepared, progress)
        return training.carry_out(fresh=False, tracked=run.tracker_run if run.tracker == settings.tracker else "")


def _require_room(session: Session, base: str, cheapest: Footprint, name: str) -> None:
    """Nothing is trained that no budget has room for. Raises BudgetError."""
    row = bases.row(session, base)
    budgets.require_room(session, row, cheapest.params.total, cheapest.bytes, name, at_least=True)


def _reserve(context: Context, name: str, run: str, prepared: Prepared) -> None:
    """Take the name, unless the cheapest outcome already breaks a budget."""
    job = prepared.job
    require_fit(job, name)
    cheapest = least(job)
    with context.catalog.write() as session:
        task = tasks.reserve(session, name, prepared.base.record.name)
        _require_room(session, prepared.base.record.name, cheapest, name)
        if job.set:
            sets.join(session, task, job.set)
        runs.begin(session, run, task, job.settings.as_json(), job.data.fingerprint, job.settings.tracker)


class _TrainingRun:
    """One go at a run whose name is reserved and whose lock is held."""

    def __init__(
        self, context: Context, name: str, run: str, folder: Path, prepared: Prepared, progress: Progress
    ) -> None:
        self.context = context
        self.name = name
        self.run = run
        self.folder = folder
        self.base = prepared.base
        self.job = replace(prepared.job, folder=folder)
        self.settings = self.job.settings
        self.progress = progress

    def carry_out(self, *, fresh: bool, tracked: str = "") -> Task:
        """Train, store, publish; whatever stops it leaves the run in a state that says so."""
        following: Following | None = None
        try:
            following = self._follow(tracked)
            outcome = train(self.job, self.progress, lambda result: self._after_epoch(result, following))
            published = self._publish(outcome, following)
        except KeyboardInterrupt:
            if not self._stopped("interrupted", "", following):
                raise Interrupted(f"Stopped. {self.name!r} had been added just before: it is ready.") from None
            raise Interrupted(
                f"Stopped. The run of {self.name!r} is kept; continue it with: "
                f"taps-registry add-task {self.name} --resume"
            ) from None
        except BudgetError as error:
            self._stopped("over-budget", str(error), following)
            raise BudgetError(
                f"{error} The trained run is kept: continue it with `taps-registry add-task {self.name} --resume`, "
                f"{self._advice()}."
            ) from error
        except BaseException as error:
            keep = not fresh or isinstance(error, WorkersDiedError) or (self.folder / CHECKPOINT).exists()
            self._stopped("failed", str(error), following, keep=keep)
            if isinstance(error, TapsError) and keep and not isinstance(error, LASTING):
                raise type(error)(f"{error} Then continue with: taps-registry add-task {self.name} --resume") from error
            raise
        try:
            self._record(published, outcome, following)
        except (TapsError, OSError) as error:  # the task is in the catalog: nothing here can undo that
            self.progress.note(f"{self.name!r} was added, but what its run came to was not all written down: {error}")
        with self.context.catalog.read() as session:
            return tasks.get(session, self.name)

    def _advice(self) -> str:
        """What may be changed so that a run that was over budget fits."""
        if self.settings.budget:
            return "after raising the budget or with a smaller --budget"
        steered = {"sparsity", "threshold"} <= set(options_of(self.job.method.options))
        return "after raising the budget or with another --encoding" + (", --sparsity or --threshold" * steered)

    def _follow(self, tracked: str) -> Following:
        home = self.context.home.root
        record = self.base.record
        info = RunInfo(self.run, record.name, self.name, home, self.settings.tracking_uri, tracked or None)
        following = Following(self.context.plugins.tracker(self.settings.tracker), info, self.progress)
        with self.context.catalog.write() as session:
            runs.update(session, self.run, tracker=following.tracker, tracker_run=following.id)
        data = self.job.data
        following.parameters(
            {
                **self.settings.as_json(),
                "lr": self.job.method_settings.lr,
                "base": record.name,
                "base_model": record.model,
                "base_digest": record.digest,
                "dataset_fingerprint": data.fingerprint,
                "classes": len(data.classes),
                "train_images": len(data.train),
                "val_images": len(data.val),
                "test_images": len(data.test),
            }
        )
        return following

    def _after_epoch(self, result: EpochResult, following: Following | None) -> None:
        if following is not None:
            following.epoch(result)
        try:
            with self.context.catalog.write() as session:
                runs.update(session, self.run, epoch=result.epoch)
        except (BusyError, StorageError) as error:  # the checkpoint is there, and the next epoch will say it again
            self.progress.note(f"The catalog does not know that epoch {result.epoch} has ended: {error}")

    def _publish(self, outcome: Outcome, following: Following) -> tasks.Published:
        """Encode, measure, store, and make the task ready."""
        result = write(self.folder, self.base, self.job, outcome.delta)
        if self.settings.encoding == AUTO:
            fetch, note = self.context.store.get, self.progress.note
            result = smallest(result, self.folder, self.base, self.job, fetch, note)
        metrics = measure_file(result, self.base, self.job, self.context.store.get)
        following.metrics({f"artifact/{name}": value for name, value in metrics.items()}, outcome.best.epoch)
        published = describe(result, self.job, metrics)
        shares = stored_shares(published.layers, self.base.record.layers)
        title = f"{self.name} on {self.base.record.name}"
        following.scores(outcome.delta.layers, self.settings.options.get("threshold", 0.0), title, shares)
        require_kept(self.job, result.delta.stored(), published.bytes, self.name)
        with self.context.home.lock(), self.context.catalog.write() as session:
            tasks.require_room(session, self.name, published)
            self.context.store.put(result.artifact)
            if result.common:
                self.context.store.put(result.common)
            tasks.publish(session, self.name, self.run, published)
            runs.update(session, self.run, state="finished")
        return published

    def _record(self, published: tasks.Published, outcome: Outcome, following: Following) -> None:
        """The task is in the catalog: tell the tracker, keep the history, drop the checkpoints."""
        with self.context.catalog.read() as session:
            uses = budgets.for_base(session, bases.row(session, self.base.record.name))
        sizes: dict[str, float] = {"artifact/bytes": published.bytes, "artifact/params": published.params.total}
        for use in uses:
            scope = "base" if use.base else "registry"
            for what, used, limit in (
                ("bytes", use.used_bytes, use.max_bytes),
                ("params", use.used_params, use.max_params),
            ):
                if limit is not None:
                    sizes |= {f"budget/{scope}_used_{what}": used, f"budget/{scope}_max_{what}": limit}
        following.metrics(sizes, outcome.best.epoch)
        following.parameters({"artifact_digest": published.digest, "best_epoch": outcome.best.epoch})
        following.end("finished")
        history = json.dumps([asdict(result) for result in outcome.history], indent=1)
        (self.folder / HISTORY).write_text(history, "utf-8")
        drop_weights(self.folder)

    def _stopped(self, state: str, error: str, following: Following | None, *, keep: bool = True) -> bool:
        """Write down why the run stopped; a fresh run that has nothing to resume gives its name back.

        Returns:
            Whether it stopped: after its last transaction, the task is ready and stays.
        """
        with self.context.catalog.write() as session:
            if runs.get(session, self.run).state == "finished":
                return False
            runs.update(session, self.run, state=state, error=error)
            if not keep:
                tasks.remove(session, self.name)
        if following is not None:
            following.end("interrupted" if state == "interrupted" else "failed")
        if not keep:
            drop(self.context.home, self.run)
        return True
