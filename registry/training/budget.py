"""``--budget``: what a task may store, in terms of what its model's tensors take, as a method steers towards it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from random import Random
from typing import TYPE_CHECKING

import torch

from ...plugins.architectures.pieces import Pieces
from ...plugins.guard import package_of
from ...plugins.methods.limits import Limit
from ..amounts import REMAINING, Amount, parse
from ..catalog import bases, budgets
from ..errors import BudgetError
from ..models.measure import roles, values
from ..store.artifact import codec_of, payload, text_and_index
from ..store.header import HEAD, WEIGHTS, Entry, Gate, Header

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ...plugins.encodings import Codec
    from ...plugins.methods import MethodSettings, Stored
    from .job import Job

FLOAT = 4  # bytes
MOST = 0.5  # of a budget, taken by the cheapest outcome: what is left for layers is scarce


def settle(session: Session, base: str, text: str) -> str:
    """The same budget with ``remaining/N`` put into numbers, which later tasks do not change.

    Args:
        session: of the catalog.
        base: name of the base.
        text: of the budget.

    Raises:
        BudgetError: if nothing is left, or there is no budget to take a part of.
        SettingsError: for what is no budget.
    """
    settled: list[str] = []
    for part in parse(text):
        settled.extend(_remaining(session, base, int(part.value)) if part.unit == "remaining" else [part.text])
    return ",".join(settled)


def _remaining(session: Session, base: str, tasks: int) -> list[str]:
    left = what_is_left(session, base)
    if not left:
        raise BudgetError(
            f"--budget {REMAINING}{tasks} is a part of what a budget has left, and neither the registry nor the base "
            f"{base!r} has one: `taps-registry budget set --base {base} --max-bytes 2GB`, or give --budget an amount."
        )
    for part in left:
        if part.value < tasks:
            raise BudgetError(
                f"The budget of the base {base!r} or of the registry has {max(0, int(part.value)):,} {part.unit} left: "
                f"nothing that could be divided by {tasks}."
            )
    return [_text(int(part.value) // tasks, part.unit) for part in left]


def what_is_left(session: Session, base: str) -> tuple[Amount, ...]:
    """Bytes and parameters that the budgets of a base and of the registry have left; below 0 if they are overdrawn."""
    uses = budgets.for_base(session, bases.row(session, base))
    return tuple(
        Amount(limit - used, unit, _text(limit - used, unit))
        for use in uses
        for limit, used, unit in (
            (use.max_bytes, use.used_bytes, "bytes"),
            (use.max_params, use.used_params, "parameters"),
        )
        if limit is not None
    )


def _text(value: int, unit: str) -> str:
    return f"{value}B" if unit == "bytes" else str(value)


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
    whole = _limit(job, Amount(0, "bytes", ""))  # its prices count the head and each tensor's lines in the header
    beside = sum(whole.prices.values()) - sum(_limit(job, Amount(0, "%", "")).prices.values())
    overhead = beside + len(whole.prices) * whole.each_factor - whole.amount
    nbytes, params = [], []
    for part in parse(job.settings.budget):
        allowed = _limit(job, part).amount
        if part.unit == "parameters":
            nbytes.append(FLOAT * allowed + overhead)
            params.append(allowed)
        else:
            nbytes.append(int(part.value) if part.unit == "bytes" else allowed + overhead)
            params.append(8 * nbytes[-1])  # of one bit each
    return min(nbytes), min(params)


def limits(job: Job) -> tuple[Limit, ...]:
    """What the job's budget allows, in terms of its model's tensors."""
    return tuple(_limit(job, part) for part in parse(job.settings.budget))


def _limit(job: Job, part: Amount) -> Limit:
    tensors, role = Pieces(job.model.state_dict()), roles(job.partition)
    names = [*role, *(name for name in tensors if name not in role)]
    if part.unit == "parameters":
        return Limit(int(part.value), {name: values(tensors[name]) for name in names}, in_bytes=False)
    sizes = {name: payload([name], tensors, role, job.encoding) for name in names}
    if part.unit == "%":
        allowed = int(part.value * FLOAT * job.backbone_params)
        return Limit(allowed, {name: size for name, size in sizes.items() if role.get(name) != HEAD})
    header, each = _beside(job, sizes, tensors, role)
    priced = {name: size + each[name] for name, size in sizes.items()}
    return Limit(int(part.value) - header, priced, each_factor=2 * max(each.values()))


def _beside(job: Job, sizes: Mapping[str, int], tensors: Pieces, role: Mapping[str, str]) -> tuple[int, dict[str, int]]:
    """Most bytes that the file takes beside its tensors, and for each tensor what it adds."""

    def entry(name: str) -> Entry:
        tensor = tensors[name]
        codec = codec_of(name, tensor, role, job.encoding)
        return Entry(
            part=role.get(name, WEIGHTS),
            encoding=codec.name if codec else "",
            parts=_parts(codec, tensor.ndim),
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
        tensors={name: entry(name) for name in sizes},
        extension=dict(job.common.arguments) if job.common else {},
        common=f"{digits.getrandbits(256):064x}",
        packages=_packages(job),
    )
    return text_and_index(header, sizes)


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


def require_fit(job: Job, task: str) -> None:
    """Return if a run can end within the job's budget.

    Raises:
        BudgetError: if not even the cheapest outcome fits; or not the dearest one of a method that cannot steer.
    """
    method, settings = job.method, job.method_settings
    steers = method.fits_limits
    stored = (method.least if steers else method.most)(job.model, job.partition, settings)
    outcome = "least" if steers else "most"
    for limit, part in zip(settings.limits, parse(job.settings.budget), strict=True):
        used = limit.used(stored)
        if used > limit.amount:
            raise BudgetError(
                f"--budget {part.text} leaves {max(0, limit.amount):,} {limit.unit} for {task!r}, and what it stores "
                f"at {outcome} takes {used:,}: {used - limit.amount:,} too many. What helps: "
                f"{_remedies(limit, settings) if steers else 'a larger budget, another --method, such as taps'}."
            )


def scarce(job: Job, task: str) -> str:
    """What to say of a budget most of which goes to what is stored in any case, such as norms; empty for others."""
    method, settings = job.method, job.method_settings
    if not method.fits_limits:
        return ""
    cheapest = method.least(job.model, job.partition, settings)
    for limit, part in zip(settings.limits, parse(job.settings.budget), strict=True):
        share = limit.used(cheapest) / max(1, limit.amount)
        if MOST < share <= 1:
            return (
                f"{share:.0%} of --budget {part.text} goes to what {task!r} stores in any case, such as norms, and "
                f"little is left for its layers. What helps: {_remedies(limit, settings)}."
            )
    return ""


def _remedies(limit: Limit, settings: MethodSettings) -> str:
    """What to type so that the cheapest outcome of a method that steers takes less of its budget."""
    fewer_bits = ["an --encoding of fewer bits"] if limit.in_bytes else []
    no_norms = ["--norms frozen"] if getattr(settings.options, "norms", "") == "task" else []
    return ", ".join(["a larger budget", *fewer_bits, *no_norms])


def require_kept(job: Job, stored: Stored, file: int, task: str) -> None:
    """Return if what is to be stored is within the job's budget.

    Args:
        job: of the task.
        stored: what its artifact holds.
        file: bytes of the artifact.
        task: its name.

    Raises:
        BudgetError
    """
    for limit, part in zip(job.method_settings.limits, parse(job.settings.budget), strict=True):
        in_file = part.unit == "bytes"
        used, allowed = (file, int(part.value)) if in_file else (limit.used(stored), limit.amount)
        if used > allowed or not limit.holds(stored):
            raise BudgetError(
                f"What was trained for {task!r} takes {used:,} {limit.unit}; --budget {part.text} allows {allowed:,}."
            )
