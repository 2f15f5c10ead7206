"""A task's model, composed from the base each time: never by adding to a model and taking away again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ..errors import IntegrityError
from ..models.bases import LoadedBase
from ..models.build import create
from ..store.artifact import Header, read_artifact


@dataclass(frozen=True)
class Composed:
    """A model in eval mode on the CPU that computes what the artifact says."""

    model: nn.Module
    header: Header


def compose(base: LoadedBase, artifact: Path) -> Composed:
    """Build the model of an artifact.

    A layer that the artifact does not hold gets the base's tensor itself. The head has no base to fall back on.

    Args:
        base: that the artifact belongs to.
        artifact: path of a file whose digest the store has checked.

    Raises:
        IntegrityError: if the artifact is damaged, belongs to another base, or does not fit the model.
    """
    header, changed = read_artifact(artifact, base.tensors, base.record.digest, base.plugins)
    model = create(base.record.model, {**base.record.arguments, "num_classes": len(header.classes)})
    _check(model, base, changed, artifact)
    wanted = model.state_dict()
    model.load_state_dict({name: changed.get(name, base.tensors.get(name)) for name in wanted}, strict=True)
    return Composed(model.eval(), header)


def _check(model: nn.Module, base: LoadedBase, changed: Mapping[str, Tensor], artifact: Path) -> None:
    """Every tensor of the head must come from the artifact, and nothing may be in it that the model has not."""
    wanted = model.state_dict()
    head = base.partition(model).head
    problems = {
        "unknown to the model": sorted(set(changed) - set(wanted)),
        "missing from the head": sorted(set(head) - set(changed)),
        "of another shape": sorted(
            name for name, tensor in changed.items() if name in wanted and tensor.shape != wanted[name].shape
        ),
    }
    found = [f"{what}: {', '.join(names)}" for what, names in problems.items() if names]
    if found:
        raise IntegrityError(f"{artifact} does not fit {base.record.model}. {'; '.join(found)}")
