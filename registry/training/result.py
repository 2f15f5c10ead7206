"""What a run came to: the best epoch as an artifact, measured as that file reads back, described for the catalog."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ...plugins.methods import Delta, Stored
from ..catalog.sets import PublishedSet
from ..catalog.tasks import Published
from ..data.loaders import Images, evaluation_loader
from ..data.splits import TaskData
from ..data.transforms import evaluation_transform
from ..inference.compose import compose
from ..models.bases import LoadedBase
from ..models.measure import roles
from ..records import InputConfig, TaskLayer
from ..store.artifact import read_header, tensor_bytes, write_artifact
from ..store.files import checksum, file_size, sha256
from ..store.recoder import Recoder
from ..store.tensors import write_tensors
from .device import find_device
from .evaluation import measure
from .job import Job
from .settings import TaskSettings

ARTIFACT, COMMON = "artifact.safetensors", "common.safetensors"
SPLITS = ("val", "test")


@dataclass(frozen=True)
class Result:
    """Files in a run's folder, and what is in them.

    Attributes:
        artifact: the task's own.
        delta: what is in it.
        encoding: that it is in.
        common: tensors that further tasks will have in common with this one, if this one trained them.
        common_params: how many values these are.
    """

    artifact: Path
    delta: Delta
    encoding: str
    common: Path | None = None
    common_params: int = 0

    def fetch(self, digest: str, elsewhere: Callable[[str], Path]) -> Path:
        """The object of this digest, which may not be in the store yet."""
        return self.common if self.common and sha256(self.common) == digest else elsewhere(digest)


def write(folder: Path, base: LoadedBase, job: Job, delta: Delta) -> Result:
    """Encode a delta into files. Raises StorageError if the disk refuses."""
    common = job.method.common(job.model) if job.set else frozenset()
    shared = {name: tensor for name, tensor in delta.tensors.items() if name in common}
    of_task = replace(delta, tensors={name: tensor for name, tensor in delta.tensors.items() if name not in common})
    digest = job.set.digest if job.set else ""
    result = Result(folder / ARTIFACT, of_task, job.encoding.name)
    if shared:
        values = sum(tensor.numel() for tensor in shared.values())
        result = replace(result, common=folder / COMMON, common_params=values)
        write_tensors(folder / COMMON, shared)
        digest = sha256(folder / COMMON)
    write_artifact(
        result.artifact,
        of_task,
        base.tensors,
        roles(job.partition),
        job.encoding,
        base.plugins,
        base=base.record.digest,
        method=job.method.name,
        classes=job.data.classes,
        input=asdict(job.input),
        extension=dict(job.set.arguments) if job.set else {},
        common=digest,
    )
    return result


def measure_file(
    result: Result, base: LoadedBase, job: Job, fetch: Callable[[str], Path], splits: Sequence[str] = SPLITS
) -> dict[str, float]:
    """Accuracy and loss of an artifact as it reads back, such as ``val/accuracy``; on test images if there are any.

    Args:
        result: what was written.
        base: that it belongs to.
        job: with the images.
        fetch: the path of an object in the store.
        splits: that it is measured on.
    """

    def elsewhere(digest: str) -> Path:
        return result.fetch(digest, fetch)

    return measure_artifact(result.artifact, base, elsewhere, job.data, job.input, job.settings, splits)


def measure_artifact(
    artifact: Path,
    base: LoadedBase,
    fetch: Callable[[str], Path],
    data: TaskData,
    config: InputConfig,
    settings: TaskSettings,
    splits: Sequence[str] = SPLITS,
) -> dict[str, float]:
    """Accuracy and loss of an artifact as it reads back, on those of these splits that have images."""
    model = compose(base, artifact, fetch).model.to(find_device(settings.device))
    metrics: dict[str, float] = {}
    for split in splits:
        samples = getattr(data, split)
        if samples:
            images = Images(samples, evaluation_transform(config))
            loader = evaluation_loader(images, settings.batch_size, settings.workers or 0)
            measured = measure(model, loader)
            metrics |= {f"{split}/accuracy": measured.accuracy, f"{split}/loss": measured.loss}
    return metrics


def smallest(
    result: Result, folder: Path, base: LoadedBase, job: Job, fetch: Callable[[str], Path], note: Callable[[str], None]
) -> Result:
    """The result in the smallest encoding that is right about as often on the validation images.

    Args:
        result: an exact one.
        folder: for drafts.
        base: that it belongs to.
        job: with the images, and the tolerance.
        fetch: the path of an object in the store.
        note: told of each encoding that was measured.
    """

    def accuracy(path: Path) -> float:
        return measure_file(replace(result, artifact=path), base, job, fetch, ("val",))["val/accuracy"]

    wanted = accuracy(result.artifact) - job.settings.encoding_tolerance / 100
    recoder = Recoder(result.artifact, folder, base.tensors, base.plugins)
    chosen = recoder.in_smallest_encoding(wanted, accuracy, note)
    return replace(result, artifact=chosen.path, encoding=chosen.encoding)


def describe(result: Result, job: Job, metrics: dict[str, float]) -> Published:
    """What the catalog is told of an artifact."""
    delta, path = result.delta, result.artifact
    return Published(
        digest=sha256(path),
        checksum=checksum(path),
        bytes=file_size(path),
        method=job.method.name,
        encoding=result.encoding,
        open_layers=sum(layer.open for layer in delta.layers),
        gated_layers=len(delta.layers),
        params=job.prices.footprint(delta.stored()).params,
        classes=job.data.classes,
        input=job.input,
        metrics=metrics,
        settings=job.settings.as_json(),
        layers=_layers(job, delta, tensor_bytes(path)),
        common=_common(result),
        packages=read_header(path).packages,
    )


def _common(result: Result) -> PublishedSet | None:
    if result.common is None:
        return None
    path = result.common
    return PublishedSet(sha256(path), checksum(path), file_size(path), result.common_params)


def _layers(job: Job, delta: Delta, sizes: Mapping[str, int]) -> tuple[TaskLayer, ...]:
    """What the artifact holds of each layer and norm, given the bytes of each tensor in it."""
    states = {state.name: state for state in delta.layers}
    stored = delta.stored()
    described = []
    for layer in (*job.partition.layers, *job.partition.norms):
        plain = stored.tensors.intersection(layer.tensors)
        factors = {name: stored.factors[name] for name in layer.tensors if name in stored.factors}
        params = job.prices.footprint(Stored(plain, factors)).params
        state = states.get(layer.name)
        described.append(
            TaskLayer(
                name=layer.name,
                kind=layer.kind,
                stage=layer.stage,
                open=bool(plain or factors),
                score=state.score if state else None,
                params=params.total,
                bytes=sum(sizes[name] for name in (*plain, *factors)),
            )
        )
    return tuple(described)
