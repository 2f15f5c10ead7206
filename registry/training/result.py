"""What a run came to: the best epoch as an artifact, measured as that file reads back, described for the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ...plugins.methods import Delta
from ..catalog.tasks import Published
from ..inference.compose import compose
from ..models.bases import LoadedBase
from ..models.measure import count, roles, values
from ..models.transforms import evaluation_transform
from ..records import TaskLayer
from ..store.artifact import payload, write_artifact
from ..store.files import sha256
from .evaluation import measure
from .images import Images, evaluation_loader
from .loop import Job, make_accelerator


def write(path: Path, base: LoadedBase, job: Job, delta: Delta) -> None:
    """Encode a delta into an artifact. Raises StorageError if the disk refuses."""
    write_artifact(
        path,
        delta,
        base.tensors,
        roles(job.partition),
        job.encoding,
        base=base.record.digest,
        method=job.method.name,
        classes=job.data.classes,
        input=asdict(job.input),
    )


def measure_file(path: Path, base: LoadedBase, job: Job) -> dict[str, float]:
    """Accuracy and loss of an artifact as it reads back, such as ``val/accuracy``; on test images if there are any."""
    accelerator = make_accelerator(job.settings.device, "fp32")
    model = compose(base, path).model.to(accelerator.device)
    metrics: dict[str, float] = {}
    for split, samples in (("val", job.data.val), ("test", job.data.test)):
        if samples:
            images = Images(samples, evaluation_transform(job.input))
            loader = evaluation_loader(images, job.settings.batch_size, job.settings.workers or 0)
            measured = measure(model, accelerator.prepare(loader), accelerator)
            metrics |= {f"{split}/accuracy": measured.accuracy, f"{split}/loss": measured.loss}
    return metrics


def describe(path: Path, job: Job, delta: Delta, metrics: dict[str, float]) -> Published:
    """What the catalog is told of an artifact."""
    parts = roles(job.partition)
    return Published(
        digest=sha256(path),
        bytes=path.stat().st_size,
        method=job.method.name,
        encoding=job.encoding.name,
        open_layers=sum(layer.open for layer in delta.layers),
        gated_layers=len(delta.layers),
        params=count(sorted(delta.tensors), delta.tensors, parts),
        classes=job.data.classes,
        input=job.input,
        metrics=metrics,
        settings=job.settings.as_json(),
        layers=_layers(job, delta, parts),
    )


def _layers(job: Job, delta: Delta, parts: Mapping[str, str]) -> tuple[TaskLayer, ...]:
    """What the artifact holds of each layer and norm."""
    states = {state.name: state for state in delta.layers}
    described = []
    for layer in (*job.partition.layers, *job.partition.norms):
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
                bytes=payload(stored, delta.tensors, parts, job.encoding),
            )
        )
    return tuple(described)
