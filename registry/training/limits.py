"""A job's budget in terms of what its model's tensors take, as a method steers towards it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from random import Random
from typing import TYPE_CHECKING

import torch

from ...plugins.guard import package_of
from ...plugins.methods.limits import Limit
from ..amounts import Amount, parse
from ..store.artifact import text_and_index
from ..store.header import HEAD, Entry, Gate, Header

if TYPE_CHECKING:
    from ...plugins.encodings import Codec
    from .job import Job

FLOAT = 4  # bytes


def limits(job: Job) -> tuple[Limit, ...]:
    """What the job's budget allows, in terms of its model's tensors."""
    return tuple(_limit(job, part) for part in parse(job.settings.budget))


def _limit(job: Job, part: Amount) -> Limit:
    prices = job.prices
    if part.unit == "parameters":
        return Limit(int(part.value), {name: price.params for name, price in prices.items()}, in_bytes=False)
    if part.unit == "%":
        allowed = int(part.value * FLOAT * job.backbone_params)
        return Limit(allowed, {name: price.bytes for name, price in prices.items() if price.part != HEAD})
    header, each = _beside(job)
    priced = {name: price.bytes + each[name] for name, price in prices.items()}
    return Limit(int(part.value) - header, priced, each_factor=2 * max(each.values()))


def binding(job: Job, left: Iterable[Amount]) -> tuple[Amount, ...]:
    """Of what the registry's budgets have left, what is less than the job's own budget lets a file come to.

    A method that steers keeps to these as well, so that its result is not refused when it is finished.
    """
    if not job.settings.budget or not job.method.fits_limits:
        return ()
    nbytes, params = _at_most(job)
    most = {"bytes": nbytes, "parameters": params}
    return tuple(part for part in left if 0 < part.value < most[part.unit])


def _at_most(job: Job) -> tuple[int, int]:
    """Upper bounds of a file's bytes and of its parameters under the job's budget."""
    header, each = _beside(job)
    head = sum(price.bytes for price in job.prices.values() if price.part == HEAD)
    beside = header + head + sum(each.values()) + 2 * len(each) * max(each.values())
    nbytes, params = [], []
    for part, limit in zip(parse(job.settings.budget), limits(job), strict=True):
        if part.unit == "parameters":
            nbytes.append(FLOAT * limit.amount + beside)
            params.append(limit.amount)
        else:
            nbytes.append(int(part.value) if part.unit == "bytes" else limit.amount + beside)
            params.append(8 * nbytes[-1])  # of one bit each
    return min(nbytes), min(params)


def _beside(job: Job) -> tuple[int, dict[str, int]]:
    """Most bytes that the file takes beside its tensors, and for each tensor what it adds."""
    tensors = job.pieces

    def entry(name: str) -> Entry:
        price, tensor = job.prices[name], tensors[name]
        return Entry(
            part=price.part,
            encoding=price.codec.name if price.codec else "",
            parts=_parts(price.codec, tensor.ndim),
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
        )

    digits = Random(0)  # noqa: S311  (no secret: text that compresses as badly as scores do)
    gates = (*job.partition.layers, *job.partition.norms)
    header = Header(
        base=f"{digits.getrandbits(256):064x}",
        method=job.method.name,
        encoding=job.encoding.name,
        classes=tuple(job.data.classes),
        input=asdict(job.input),
        layers=tuple(Gate(layer.name, open=digits.random() < 0.5, score=-digits.random()) for layer in gates),
        tensors={name: entry(name) for name in job.prices},
        extension=dict(job.set.arguments) if job.set else {},
        common=f"{digits.getrandbits(256):064x}",
        packages=_packages(job),
    )
    return text_and_index(header, {name: price.bytes for name, price in job.prices.items()})


def _packages(job: Job) -> dict[str, str]:
    """As long as an artifact's are likely to be: its method may have a form of its own."""
    forms = [job.encoding.name, job.encoding.low_rank_form, f"{job.method.name}-form"]
    forms += [job.encoding.vectors.name] if job.encoding.vectors else []
    brought = package_of(type(job.method))
    return {f"method {job.method.name}": brought, **{f"form {name}": brought for name in forms}}


def _parts(codec: Codec | None, dimensions: int) -> tuple[str, ...]:
    """Names of parts as long as a codec's are likely to be: those of a small tensor, and two more if that may vary."""
    if codec is None:
        return ("",)
    small = torch.zeros((2,) * dimensions)
    return (*codec.encode(small, small), *(() if codec.fixed else ("first", "second")))
