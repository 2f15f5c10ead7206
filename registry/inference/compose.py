"""A task's model, composed from the base each time: never by adding to a model and taking away again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ...plugins.architectures.pieces import Pieces, tensor_of
from ..catalog import bases, tasks
from ..context import Context
from ..errors import IntegrityError
from ..fresh import with_fresh
from ..models.bases import Blank, LoadedBase, load_and_build
from ..records import Base, Task
from ..store.artifact import read_artifact
from ..store.header import Header
from ..store.tensors import read_tensors


@dataclass(frozen=True)
class Composed:
    """A model in eval mode on the CPU that computes what the artifact says."""

    model: nn.Module
    header: Header


def compose_task(context: Context, name: str) -> tuple[Task, Base, Composed]:
    """A task with its base and its model.

    Raises NotFoundError if there is none of this name, or it is in training, and IntegrityError if its bytes or the
    base's are missing or damaged.
    """

    def look_up() -> tuple[Task, Base]:
        with context.catalog.read() as session:
            record = tasks.ready(session, name)
            return record, bases.get(session, record.base)

    return with_fresh(look_up, lambda seen: (*seen, _compose(context, *seen)))


def _compose(context: Context, record: Task, base: Base) -> Composed:
    with ThreadPoolExecutor(1) as reader:
        artifact = reader.submit(context.store.get, record.digest)  # then the base's, while the model is built
        with load_and_build(context, base, len(record.classes), reader) as (loaded, blank):
            return compose(loaded, artifact.result(), context.store.get, blank)


def compose(base: LoadedBase, artifact: Path, fetch: Callable[[str], Path], blank: Blank | None = None) -> Composed:
    """Build the model of an artifact, whose digest the store has checked.

    A layer that the artifact does not hold gets the base's tensor itself. The head has no base to fall back on. What
    the task has in common with others is in an object that ``fetch`` gives the checked path of. A ``blank`` of another
    number of classes is replaced.

    Raises:
        IntegrityError: if the artifact is damaged, belongs to another base, or does not fit the model.
        PluginError: if it needs a method or encoding that is not installed.
    """
    header, changed = read_artifact(artifact, base.tensors, base.record.digest, base.plugins)
    if blank is None or blank.classes != len(header.classes):  # which nothing but the artifact says for certain
        blank = base.blank(len(header.classes))
    model, needed = blank.model, set(blank.partition.head)
    if header.extension:
        plain = set(model.state_dict())
        base.plugins.method(header.method).extend(model, header.extension)
        needed |= set(model.state_dict()) - plain
    if header.common:
        changed.update(read_tensors(fetch(header.common)))
    _check(model, needed, changed, f"{artifact} does not fit {base.record.model}.")
    model.load_state_dict(assemble(model, changed, base.tensors), strict=True)
    return Composed(model.eval(), header)


def assemble(model: nn.Module, changed: Mapping[str, Tensor], originals: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict: changed tensors, the base's own, and the base's with changed rows put into a copy.

    What a model uses under several names is changed under the first. ``changed`` is by tensor, or rows of one.
    """
    firsts = first_names(model)
    whole = {name: changed.get(first, originals.get(name)) for name, first in firsts.items()}
    tensors = {name: tensor for name, tensor in whole.items() if tensor is not None}
    pieces = [piece for piece in changed if piece not in tensors]
    for name in {tensor_of(piece) for piece in pieces}:
        tensors[name] = tensors[name].clone()
    for piece in pieces:
        Pieces(tensors)[piece].copy_(changed[piece])
    return {name: tensors[first] for name, first in firsts.items() if first in tensors}


def first_names(model: nn.Module) -> dict[str, str]:
    """For every name in the state dict the first name of the same tensor; most often itself."""
    firsts: dict[int, str] = {}
    return {name: firsts.setdefault(id(tensor), name) for name, tensor in model.state_dict(keep_vars=True).items()}


def _check(model: nn.Module, needed: Iterable[str], changed: Mapping[str, Tensor], failure: str) -> None:
    """What the base has not must come from the artifact, and nothing may be in it that the model has not."""
    wanted = Pieces(model.state_dict())
    known = {name: wanted[name].shape for name in changed if tensor_of(name) in wanted.tensors}
    problems = {
        "unknown to the model": sorted(set(changed) - set(known)),
        "missing": sorted(set(needed) - set(changed)),
        "wrong shape": sorted(name for name, shape in known.items() if changed[name].shape != shape),
    }
    faults = [f"{what}: {', '.join(names)}" for what, names in problems.items() if names]
    if faults:
        raise IntegrityError(f"{failure} {'; '.join(faults)}")
