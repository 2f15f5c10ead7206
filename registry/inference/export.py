"""A task for programs that have never heard of this project: a plain timm checkpoint, or a torch program."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file

from ..errors import IntegrityError, SettingsError, first_line
from ..home import require_outside
from ..records import Base
from ..store.files import in_place
from ..store.header import Header
from ..store.tensors import digest, write_tensors
from .compose import Composed


def export(composed: Composed, base: Base, path: Path) -> str:
    """Write the whole model, read it back and compare. Returns the Python that loads it.

    ``.safetensors`` is for timm, ``.pt2`` a program of ``torch.export``, which needs no timm either and also holds
    models that do not fold into timm's weights.

    Raises:
        SettingsError: for another ending, a name that is not UTF-8, a path inside a registry, or a checkpoint of a
            model that timm cannot build.
        StorageError: if the disk refuses.
    """
    require_outside(path)
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise SettingsError(f"{path} has a name that is not UTF-8, which timm and torch cannot load.") from error
    if path.suffix == ".pt2":
        return _program(composed, base, path)
    if path.suffix != ".safetensors":
        raise SettingsError(f"{path} must end in .safetensors or .pt2: timm loads any other file as a pickle.")
    if composed.header.extension:
        raise SettingsError(
            f"--method {composed.header.method} adds modules that timm's {base.model} does not have: export to a file "
            "ending in .pt2, a program for torch.export.load."
        )
    if not timm.is_model(base.model.partition(".")[0]) and ":" not in base.model:
        raise SettingsError(
            f"{base.model} is a plugin's model, which timm cannot build: export to a file ending in .pt2, a program "
            "for torch.export.load."
        )
    return _checkpoint(composed, base, path)


def _program(composed: Composed, base: Base, path: Path) -> str:
    """The model as a graph of torch's own operations, for batches of any size."""
    example = torch.zeros(2, *composed.header.input["size"])  # the task's, which may differ from the base's
    batch = torch.export.Dim("batch", min=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.export, about timm's code
            program = torch.export.export(composed.model, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # whatever in a model's code torch cannot trace
        raise SettingsError(f"torch.export cannot trace {base.model}: {first_line(error)}") from error
    with in_place(path) as draft:
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        draft.write_bytes(buffer.getvalue())
    return f"torch.export.load({str(path)!r}).module()"


def _checkpoint(composed: Composed, base: Base, path: Path) -> str:
    tensors = composed.model.state_dict()
    about = {"model": base.model, "arguments": dict(base.arguments), "classes": composed.header.classes}
    write_tensors(path, tensors, {"taps": json.dumps({**about, "input": dict(composed.header.input)}, sort_keys=True)})
    if digest(load_file(path)) != digest(tensors):
        raise IntegrityError(f"{path} differs from what was written when it is read back.")
    return create_call(base, composed.header, path)


def create_call(base: Base, header: Header, path: Path) -> str:
    """The line of Python that loads an exported checkpoint; timm then prepares images for it as the task does."""
    config = header.config()
    prepared: dict[str, Any] = {"input_size": config.size, "mean": config.mean, "std": config.std}
    prepared |= {"interpolation": config.interpolation, "crop_pct": config.crop_pct, "crop_mode": config.crop_mode}
    overlay = {**base.arguments.get("pretrained_cfg_overlay", {}), **prepared}
    arguments: dict[str, Any] = {**base.arguments, "num_classes": len(header.classes), "checkpoint_path": str(path)}
    arguments["pretrained_cfg_overlay"] = overlay
    return f"timm.create_model({base.model!r}, {', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
