"""A task as a plain timm checkpoint, for programs that have never heard of this project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from ..errors import IntegrityError, SettingsError
from ..records import Base
from ..store.tensors import digest, write_tensors
from .compose import Composed


def export(composed: Composed, base: Base, path: Path) -> str:
    """Write the whole model; read it back and compare.

    Args:
        composed: the task's model.
        base: that it is on.
        path: of the file, ending in ``.safetensors``.

    Returns:
        The call of ``timm.create_model`` that loads it.

    Raises:
        SettingsError: for another ending, which timm would read as a pickle.
        StorageError: if the disk refuses.
    """
    if path.suffix != ".safetensors":
        raise SettingsError(f"{path} must end in .safetensors: timm reads anything else as a pickle.")
    tensors = composed.model.state_dict()
    about = {"model": base.model, "arguments": dict(base.arguments), "classes": composed.header.classes}
    write_tensors(path, tensors, {"taps": json.dumps({**about, "input": dict(composed.header.input)}, sort_keys=True)})
    if digest(load_file(path)) != digest(tensors):
        raise IntegrityError(f"{path} does not read back as it was written.")
    return create_call(base, len(composed.header.classes), path)


def create_call(base: Base, classes: int, path: Path) -> str:
    """The line of Python that loads an exported checkpoint."""
    arguments: dict[str, Any] = {**base.arguments, "num_classes": classes, "checkpoint_path": str(path)}
    return f"timm.create_model({base.model!r}, {', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
