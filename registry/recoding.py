"""A stored task in another encoding: a new version of it, from the file of its current one.

1. The values of the artifact are decoded and written anew; factors in a form of their method's own stay as they are,
   but for those of low rank, which an encoding of few bits makes smaller.
2. The new file is measured as it reads back, on the images that the task was trained with if they are still there.
3. Under the registry's lock one transaction holds it against the budgets and makes it the current version, and the file
   enters the store. A crash before leaves the task as it was; a crash after, the new version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .catalog import bases, runs, tasks
from .context import Context
from .data.splits import TaskData, open_data
from .errors import DataError
from .folders import scratch
from .fresh import with_fresh
from .models.bases import LoadedBase, load
from .models.build import create_on_meta
from .records import Base, Run, Task, TaskLayer
from .store.artifact import is_exact, read_artifact, read_header, stored_params, tensor_bytes
from .store.files import checksum, file_size, sha256
from .store.header import Header
from .store.recoder import Draft, Recoder
from .store.tensors import digest
from .training.device import find_device
from .training.progress import Progress
from .training.result import measure_artifact
from .training.settings import AUTO, TaskSettings


def recode(context: Context, name: str, changes: Mapping[str, Any], progress: Progress) -> Task:
    """Store a task in another encoding: ``changes`` has ``encoding``, ``encoding_tolerance`` and ``device``.

    Returns the task in its new version; in its present one if it would be the same file, or with ``auto`` a larger one.
    For the steps see the module, for errors ``Registry.recode``.
    """

    def look_up() -> _Seen:
        with context.catalog.read() as session:
            task = tasks.ready(session, name)
            run = runs.get(session, task.run) if task.run else None
            trained = tasks.first_metrics(session, name).get("val/accuracy", 0.0)
            return _Seen(task, bases.get(session, task.base), run, trained)

    return with_fresh(look_up, lambda seen: _recode(context, seen, changes, progress))


@dataclass(frozen=True)
class _Seen:
    """What the catalog says of a task; ``trained`` is the validation accuracy of its first version, a share of 1.

    What ``auto`` may lose is counted from there.
    """

    task: Task
    base: Base
    run: Run | None
    trained: float


def _recode(context: Context, seen: _Seen, changes: Mapping[str, Any], progress: Progress) -> Task:
    task, name = seen.task, seen.task.name
    settings = replace(TaskSettings.stored(task.settings, name), **changes)
    settings.check()
    find_device(settings.device)
    if settings.encoding != AUTO:
        context.plugins.encoding(settings.encoding)
    source = context.store.get(task.digest)
    recoding = _Recoding(context, seen, source, read_header(source), settings, load(context, seen.base), progress)
    with scratch(context.home) as folder:
        draft = recoding.draft(folder)
        if sha256(draft.path) == task.digest or (settings.encoding == AUTO and draft.size >= file_size(source)):
            progress.note(f"{name!r} is already stored in {task.encoding} ({task.bytes:,} bytes); it was not changed.")
            return task
        published = recoding.described(draft)
        with context.home.lock(), context.catalog.write() as session:
            tasks.recode(session, task, published)
            context.store.put(draft.path)
    with context.catalog.read() as session:
        return tasks.get(session, name)


@dataclass(frozen=True)
class _Recoding:
    """One task on its way to another encoding, from its present file.

    What that file's header says of method, classes and preprocessing counts, whatever the catalog says.
    """

    context: Context
    seen: _Seen
    source: Path
    header: Header
    settings: TaskSettings
    base: LoadedBase
    progress: Progress

    @property
    def task(self) -> Task:
        return self.seen.task

    def draft(self, folder: Path) -> Draft:
        """The new file."""
        recoder = Recoder(self.source, folder, self.base.tensors, self.base.plugins)
        if self.settings.encoding != AUTO:
            return recoder.in_encoding(self.settings.encoding)
        data = self._images()

        def accuracy(path: Path) -> float:
            return self._measure(path, data, ("val",))["val/accuracy"]

        wanted = max(accuracy(self.source), self.seen.trained) - self.settings.encoding_tolerance / 100
        return recoder.in_smallest_encoding(wanted, accuracy, self.progress.note)

    def described(self, draft: Draft) -> tasks.Published:
        """What the catalog is told of the new file: counts and scores are those of the version it is made from."""
        task = self.task
        asked = {"encoding": self.settings.encoding, "encoding_tolerance": self.settings.encoding_tolerance}
        return tasks.Published(
            digest=sha256(draft.path),
            checksum=checksum(draft.path),
            bytes=draft.size,
            method=self.header.method,
            encoding=draft.encoding,
            open_layers=sum(gate.open for gate in self.header.layers),
            gated_layers=task.gated_layers,
            params=replace(task.params, **stored_params(self.header, self.base.plugins)),
            classes=self.header.classes,
            input=self.header.config(),
            packages=read_header(draft.path).packages,
            metrics=self._metrics(draft),
            settings={**task.settings, **asked},
            layers=self._layers(draft),
        )

    def _layers(self, draft: Draft) -> tuple[TaskLayer, ...]:
        sizes = tensor_bytes(draft.path)
        record = self.base.record
        arguments = {**record.arguments, "num_classes": len(self.header.classes)}
        partition = self.base.partition(create_on_meta(self.base.plugins, record.model, arguments))
        tensors = {layer.name: layer.tensors for layer in (*partition.layers, *partition.norms)}
        return tuple(
            replace(layer, bytes=sum(sizes.get(name, 0) for name in tensors[layer.name])) for layer in self.task.layers
        )

    def _metrics(self, draft: Draft) -> dict[str, float]:
        """Those of the earlier version if both decode to the same bits, else as measured; empty if that cannot be."""
        header, before = self._decoded(self.source)
        _, after = self._decoded(draft.path)
        if draft.exact and not is_exact(header, self.base.plugins):
            self.progress.note(
                f"{self.task.encoding} has rounded {self.task.name!r}, and {draft.encoding} stores the rounded values: "
                "precision lost earlier cannot be recovered."
            )
        if digest(before) == digest(after):
            return dict(self.task.metrics)
        try:
            return self._measure(draft.path, self._images(), ("val", "test"))
        except DataError as error:
            self.progress.note(
                f"{error} So the accuracy of the new version was not measured; "
                f"`taps-registry evaluate {self.task.name} --data DIR` measures it."
            )
            return {}

    def _decoded(self, path: Path) -> tuple[Header, dict[str, Tensor]]:
        return read_artifact(path, self.base.tensors, self.base.record.digest, self.base.plugins)

    def _images(self) -> TaskData:
        """The images of the run that trained the task. Raises DataError if they are gone or others."""
        run = self.seen.run
        if run is None:
            raise DataError(f"It is not known which images {self.task.name!r} was trained with.")
        settings = self.settings
        data = open_data(
            settings.data,
            settings.val_data,
            settings.test_data,
            seed=settings.seed,
            skip_bad_images=settings.skip_bad_images,
            progress=self.progress.checking,
        )
        if data.fingerprint != run.fingerprint:
            raise DataError(f"The images in {settings.data} are not those that {self.task.name!r} was trained with.")
        return data

    def _measure(self, path: Path, data: TaskData, splits: Sequence[str]) -> dict[str, float]:
        config = self.header.config()
        return measure_artifact(path, self.base, self.context.store.get, data, config, self.settings, splits)
