"""Checkpoints without pickle: any nest of dicts, lists, numbers and tensors in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...plugins.methods import Delta, Factors, LayerState
from ..errors import IntegrityError
from ..store.tensors import write_tensors

KEY = "state"
TENSOR, PAIRS = "$tensor", "$pairs"


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state, whole or not at all. Raises StorageError if the disk refuses."""
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_flatten(state, tensors))
    write_tensors(path, tensors, {KEY: skeleton})


def load(path: Path) -> dict[str, Any]:
    """Read back what ``save`` wrote; tuples come back as lists.

    Raises:
        IntegrityError: if the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            skeleton = json.loads(file.metadata()[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
        state: dict[str, Any] = _unflatten(skeleton, tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"The checkpoint {path} is damaged: {error}") from error
    return state


def _flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON, with each tensor put into ``tensors`` and its key in the tensor's place."""
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value
        return {TENSOR: key}
    if isinstance(value, Mapping):  # pairs, because an optimiser's state has integers for keys
        return {PAIRS: [[key, _flatten(member, tensors)] for key, member in value.items()]}
    if isinstance(value, list | tuple):
        return [_flatten(member, tensors) for member in value]
    return value


def _unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if TENSOR in value:
            return tensors[value[TENSOR]]
        return {key: _unflatten(member, tensors) for key, member in value[PAIRS]}
    if isinstance(value, list):
        return [_unflatten(member, tensors) for member in value]
    return value


def save_delta(path: Path, delta: Delta) -> None:
    """Keep a delta as it is in memory, before any encoding."""
    layers = [asdict(layer) for layer in delta.layers]
    factors = {
        name: {"form": stored.form, "parts": stored.parts, "params": stored.params}
        for name, stored in delta.factors.items()
    }
    save(path, {"tensors": delta.tensors, "layers": layers, "factors": factors})


def load_delta(path: Path) -> Delta:
    """Read back what ``save_delta`` wrote. Raises IntegrityError if the file is damaged."""
    state: Mapping[str, Any] = load(path)
    factors = {name: Factors(**stored) for name, stored in state["factors"].items()}
    return Delta(state["tensors"], tuple(LayerState(**layer) for layer in state["layers"]), factors)
