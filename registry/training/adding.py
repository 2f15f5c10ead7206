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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...plugins.architectures import Partition
from ...plugins.methods import Delta
from ...plugins.trackers import RunInfo
from ..catalog import bases, budgets, runs, tasks
from ..context import Context
from ..errors import BudgetError, DataError, Interrupted, NotFoundError, TapsError
from ..folders import drop, drop_weights, held
from ..home import check_name
from ..inference.compose import compose
from ..models.bases import LoadedBase, load
from ..models.build import check_input
from ..models.measure import count, roles, values
from ..models.transforms import evaluation_transform
from ..records import Base, InputConfig, Task, TaskLayer
from ..store.artifact import payload, write_artifact
from ..store.files import sha256
from .data import TaskData, open_data
from .evaluation import measure
from .images import Images, evaluation_loader
from .loop import CHECKPOINT, Job, Outcome, make_accelerator
from .processes import train
from .progress import EpochResult, Progress
from .settings import TaskSettings
from .tracking import Following

ARTIFACT = "artifact.safetensors"
HISTORY = "history.json"


def add_task(context: Context, name: str, base: str, settings: TaskSettings, progress: Progress) -> Task:
    """Train a task and add it. See the module for the steps.

    Raises:
        SettingsError, NotFoundError, NameTakenError, DataError, BudgetError: before anything is written.
        TrainingError, BudgetError, Interrupted: afterwards; the run can be resumed.
    """
    check_name(name, "task")
    _check(context, settings)
    with context.catalog.read() as session:
        record = bases.get(session, base)
        tasks.require_free(session, name)
    prepared = _prepare(context, record, settings, progress)
    run = uuid.uuid4().hex
    with held(context.home, run) as folder:
        try:
            _reserve(context, name, run, prepared)
        except TapsError:
            drop(context.home, run)
            raise
        return _Attempt(context, name, run, folder, prepared, progress).carry_out(fresh=True)


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
        DataError: if the images are not those that the run began with.
    """
    with context.catalog.read() as session:
        task = tasks.get(session, name)
        run = runs.of_task(session, name)
        record = bases.get(session, task.base)
    if run is None:
        raise NotFoundError(f"The task {name!r} is finished: there is nothing to resume.")
    with held(context.home, run.id) as folder:
        settings = TaskSettings(**run.settings).changed(changes)
        _check(context, settings)
        prepared = _prepare(context, record, settings, progress)
        if prepared.data.fingerprint != run.fingerprint:
            raise DataError(
                f"The images in {settings.data} are not those that the run of {name!r} began with. Put them back, or "
                f"`taps-registry remove {name}` and add it anew."
            )
        with context.catalog.write() as session:
            runs.update(session, run.id, state="running", settings=settings.as_json(), error="")
        attempt = _Attempt(context, name, run.id, folder, prepared, progress)
        return attempt.carry_out(fresh=False, tracked=run.tracker_run if run.tracker == settings.tracker else "")


def _check(context: Context, settings: TaskSettings) -> None:
    """Fail before anything is opened: settings, and the plugins that they name."""
    settings.check()
    make_accelerator(settings.device, settings.precision)
    settings.check_method(context.plugins.method(settings.method))
    context.plugins.encoding(settings.encoding)
    context.plugins.tracker(settings.tracker)


@dataclass(frozen=True)
class _Prepared:
    """A run ready to begin."""

    base: LoadedBase
    settings: TaskSettings
    data: TaskData
    input: InputConfig
    job: Job

    @property
    def partition(self) -> Partition:
        return self.job.partition


def _prepare(context: Context, record: Base, settings: TaskSettings, progress: Progress) -> _Prepared:
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
    return _Prepared(base, settings, data, config, job)


def _reserve(context: Context, name: str, run: str, prepared: _Prepared) -> None:
    """Take the name, unless the cheapest outcome already breaks a budget."""
    job = prepared.job
    tensors = job.model.state_dict()
    least = sorted(job.method.least(job.partition, prepared.settings.for_method(job.lr)))
    parts = roles(job.partition)
    params, size = count(least, tensors, parts).total, payload(least, tensors, parts, job.encoding)
    with context.catalog.write() as session:
        task = tasks.reserve(session, name, prepared.base.record.name)
        budgets.require_room(session, task.base, params, size, name, at_least=True)
        settings = prepared.settings
        runs.begin(session, run, task, settings.as_json(), prepared.data.fingerprint, settings.tracker)


class _Attempt:
    """One go at a run whose name is reserved and whose lock is held."""

    def __init__(
        self, context: Context, name: str, run: str, folder: Path, prepared: _Prepared, progress: Progress
    ) -> None:
        self.context = context
        self.name = name
        self.run = run
        self.folder = folder
        self.prepared = prepared
        self.settings = prepared.settings
        self.job = replace(prepared.job, folder=folder)
        self.progress = progress

    def carry_out(self, *, fresh: bool, tracked: str = "") -> Task:
        """Train, store, publish; whatever stops it leaves the run in a state that says so."""
        following: Following | None = None
        try:
            following = self._follow(tracked)
            outcome = train(self.job, self.progress, lambda result: self._after_epoch(result, following))
            published = self._publish(outcome, following)
        except KeyboardInterrupt:
            self._stopped("interrupted", "", following)
            raise Interrupted(
                f"Stopped. The run of {self.name!r} is kept; continue it with: "
                f"taps-registry add-task {self.name} --resume"
            ) from None
        except BudgetError as error:
            self._stopped("over-budget", str(error), following)
            raise BudgetError(
                f"{error} The trained run is kept: continue it with `taps-registry add-task {self.name} --resume`, "
                "after raising the budget or with another --encoding, --sparsity or --threshold."
            ) from error
        except BaseException as error:
            keep = not fresh or (self.folder / CHECKPOINT).exists()
            self._stopped("failed", str(error), following, keep=keep)
            if isinstance(error, TapsError) and keep:
                raise type(error)(f"{error} Then continue with: taps-registry add-task {self.name} --resume") from error
            raise
        self._record(published, outcome, following)  # the task is in the catalog: nothing here can undo that
        with self.context.catalog.read() as session:
            return tasks.get(session, self.name)

    def _follow(self, tracked: str) -> Following:
        home = self.context.home.root
        record = self.prepared.base.record
        info = RunInfo(self.run, record.name, self.name, home, self.settings.tracking_uri, tracked or None)
        following = Following(self.context.plugins.tracker(self.settings.tracker), info, self.progress)
        with self.context.catalog.write() as session:
            runs.update(session, self.run, tracker=following.tracker, tracker_run=following.id)
        data = self.prepared.data
        following.parameters(
            {
                **self.settings.as_json(),
                "lr": self.settings.for_method(self.job.lr).lr,
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
        with self.context.catalog.write() as session:
            runs.update(session, self.run, epoch=result.epoch)

    def _publish(self, outcome: Outcome, following: Following) -> tasks.Published:
        """Encode, measure, store, and make the task ready."""
        artifact = self.folder / ARTIFACT
        delta = outcome.delta
        record = self.prepared.base.record
        write_artifact(
            artifact,
            delta,
            self.prepared.base.tensors,
            roles(self.job.partition),
            self.job.encoding,
            base=record.digest,
            method=self.job.method.name,
            classes=self.prepared.data.classes,
            input=asdict(self.prepared.input),
        )
        metrics = self._measure(artifact)
        following.metrics({f"artifact/{name}": value for name, value in metrics.items()}, outcome.best.epoch)
        following.scores(delta.layers, self.settings.threshold, f"{self.name} on {record.name}")
        published = self._published(artifact, delta, metrics)
        with self.context.home.lock(), self.context.catalog.write() as session:
            tasks.require_room(session, self.name, published)
            self.context.store.put(artifact)
            tasks.publish(session, self.name, self.run, published)
            runs.update(session, self.run, state="finished")
        return published

    def _measure(self, artifact: Path) -> dict[str, float]:
        """Accuracy and loss of the file as it reads back, with its best epoch chosen on validation alone."""
        composed = compose(self.prepared.base, artifact)
        accelerator = make_accelerator(self.settings.device, "fp32")
        model = composed.model.to(accelerator.device)
        metrics: dict[str, float] = {}
        for split, samples in (("val", self.prepared.data.val), ("test", self.prepared.data.test)):
            if samples:
                images = Images(samples, evaluation_transform(self.prepared.input))
                loader = evaluation_loader(images, self.settings.batch_size, self.settings.workers or 0)
                measured = measure(model, accelerator.prepare(loader), accelerator)
                metrics |= {f"{split}/accuracy": measured.accuracy, f"{split}/loss": measured.loss}
        return metrics

    def _published(self, artifact: Path, delta: Delta, metrics: dict[str, float]) -> tasks.Published:
        parts = roles(self.job.partition)
        names = sorted(delta.tensors)
        return tasks.Published(
            digest=sha256(artifact),
            bytes=artifact.stat().st_size,
            method=self.job.method.name,
            encoding=self.job.encoding.name,
            open_layers=sum(layer.open for layer in delta.layers),
            gated_layers=len(delta.layers),
            params=count(names, delta.tensors, parts),
            classes=self.prepared.data.classes,
            input=self.prepared.input,
            metrics=metrics,
            settings=self.settings.as_json(),
            layers=self._layers(delta, parts),
        )

    def _layers(self, delta: Delta, parts: Mapping[str, str]) -> tuple[TaskLayer, ...]:
        """What the artifact holds of each layer and norm."""
        states = {state.name: state for state in delta.layers}
        partition = self.job.partition
        described = []
        for layer in (*partition.layers, *partition.norms):
            stored = [name for name in layer.tensors if name in delta.tensors]
            state = states.get(layer.name)
            described.append(
                TaskLayer(
                    name=layer.name,
                    kind=layer.kind,
                    stage=layer.stage,
                    open=bool(stored),
                    score=state.score if state else None,
                    params=sum(values(delta.tensors[name]) for name in stored),
                    bytes=payload(stored, delta.tensors, parts, self.job.encoding),
                )
            )
        return tuple(described)

    def _record(self, published: tasks.Published, outcome: Outcome, following: Following) -> None:
        """The task is in the catalog: tell the tracker, keep the history, drop the checkpoints."""
        with self.context.catalog.read() as session:
            uses = budgets.for_base(session, bases.row(session, self.prepared.base.record.name))
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

    def _stopped(self, state: str, error: str, following: Following | None, *, keep: bool = True) -> None:
        """Write down why the run stopped; a fresh run that has nothing to resume gives its name back."""
        with self.context.catalog.write() as session:
            if runs.get(session, self.run).state == "finished":
                return  # it was stopped after its transaction: the task is ready, and stays
            runs.update(session, self.run, state=state, error=error)
            if not keep:
                tasks.remove(session, self.name)
        if following is not None:
            following.end("interrupted" if state == "interrupted" else "failed")
        if not keep:
            drop(self.context.home, self.run)
