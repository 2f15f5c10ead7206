"""The artifact: one safetensors file a task version. Written once, checked in full before any tensor is used.

All that is not tensors is one JSON text under the metadata key ``taps``: safetensors keeps several keys in no fixed
order, which would give the same content different digests. See docs/artifact-format.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...plugins.architectures.pieces import Pieces
from ...plugins.encodings import Encoding
from ...plugins.manager import PluginManager
from ...plugins.methods import Delta
from ..errors import IntegrityError
from .tensors import write_tensors

FORMAT = 2
READABLE = (1, 2)
KEY = "taps"
WEIGHTS, NORMS, HEAD = "weights", "norms", "head"
PARTS = "::"  # between a tensor's name and the name of an encoding's further part


@dataclass(frozen=True)
class Entry:
    """How one tensor of the model is stored.

    Attributes:
        part: ``weights``, ``norms`` or ``head``.
        encoding: the name of the form that decodes it; empty for the plain tensor.
        parts: names of the encoding's parts, "" for the main one.
        shape: of the decoded tensor.
        dtype: of the decoded tensor, such as ``float32``.
    """

    part: str
    encoding: str
    parts: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Entry:
        """Raises KeyError, TypeError or ValueError for anything that ``asdict`` does not make."""
        made = cls(**{**raw, "parts": tuple(raw["parts"]), "shape": tuple(raw["shape"])})
        if not all(isinstance(text, str) for text in (made.part, made.encoding, made.dtype, *made.parts)):
            raise ValueError("part, encoding, dtype and parts of a tensor are texts")
        return made


@dataclass(frozen=True)
class Gate:
    """Where a layer's gate stood; the score is None for a method without scores."""

    name: str
    open: bool
    score: float | None


@dataclass(frozen=True)
class Header:
    """What an artifact says of itself.

    Attributes:
        base: digest of the base it belongs to.
        method: that made it.
        encoding: of its layers.
        classes: in the order of the head's outputs.
        input: the ``InputConfig`` of its images, as a dict.
        layers: in forward order.
        tensors: by state-dict name; ``name[0:64]`` for rows of one.
        extension: arguments of the method's ``extend``, if it adds modules to the model.
        common: digest of the object that holds those tensors of them that several tasks have in common.
    """

    base: str
    method: str
    encoding: str
    classes: tuple[str, ...]
    input: Mapping[str, Any]
    layers: tuple[Gate, ...]
    tensors: Mapping[str, Entry]
    extension: Mapping[str, Any] = field(default_factory=dict)
    common: str = ""
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Header:
        """Raises ValueError, KeyError or TypeError if the text is not what ``to_json`` writes."""
        raw = json.loads(text)
        if raw["format"] not in READABLE:
            raise ValueError(f"format {raw['format']} is none of {READABLE}: a newer taps-registry wrote it")
        entries = {name: Entry.from_json(entry) for name, entry in raw["tensors"].items()}
        gates = tuple(Gate(**gate) for gate in raw["layers"])
        made = cls(**{**raw, "classes": tuple(raw["classes"]), "layers": gates, "tensors": entries})
        if not isinstance(made.common, str) or not isinstance(made.extension, dict):
            raise ValueError("common is a text and extension an object")
        return made

    def keys(self) -> set[str]:
        """Names of the tensors that the file must hold, no more and no fewer."""
        return {key(name, part) for name, entry in self.tensors.items() for part in entry.parts}


def key(name: str, part: str) -> str:
    """Name in the file of a part of a tensor."""
    return f"{name}{PARTS}{part}" if part else name


def write_artifact(
    path: Path,
    delta: Delta,
    originals: Mapping[str, Tensor],
    roles: Mapping[str, str],
    encoding: Encoding,
    **header: Any,
) -> Header:
    """Encode what a task changed into a file.

    Args:
        path: of the file, written whole or not at all.
        delta: what the task changed.
        originals: the base's tensors by name.
        roles: ``weights``, ``norms`` or ``head`` for each tensor of the model; weights are encoded, the rest is plain,
            as is what a method added to the model.
        encoding: of the weights.
        header: the remaining fields of ``Header``.
    """
    tensors: dict[str, Tensor] = {}
    entries: dict[str, Entry] = {}
    based = Pieces(originals)

    def put(name: str, form: str, parts: Mapping[str, Tensor], like: Tensor) -> None:
        tensors.update({key(name, part): tensor for part, tensor in parts.items()})
        dtype = str(like.dtype).removeprefix("torch.")
        entries[name] = Entry(roles.get(name, WEIGHTS), form, tuple(sorted(parts)), tuple(like.shape), dtype)

    for name, value in sorted(delta.tensors.items()):
        encoded = is_encoded(name, value, roles)
        put(
            name,
            encoding.name if encoded else "",
            encoding.encode(value, based[name]) if encoded else {"": value},
            value,
        )
    for name, factors in sorted(delta.factors.items()):
        put(name, factors.form, factors.parts, based[name])
    gates = tuple(Gate(state.name, state.open, state.score) for state in delta.layers)
    made = Header(encoding=encoding.name, layers=gates, tensors=entries, **header)
    write_tensors(path, tensors, {KEY: made.to_json()})
    return made


def is_encoded(name: str, value: Tensor, roles: Mapping[str, str]) -> bool:
    """Whether a tensor goes through the encoding: floating-point weights of the model's own."""
    return roles.get(name) == WEIGHTS and value.is_floating_point()


def read_header(path: Path) -> Header:
    """What the file says of itself, held against the names of its tensors.

    Raises:
        IntegrityError: if it is no artifact, or tensors are missing or too many.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            header = Header.from_json(metadata[KEY])
            found = set(file.keys())
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{path} is not an artifact of this registry: {error}") from error
    differing = found.symmetric_difference(header.keys())
    if differing:
        raise IntegrityError(f"{path} does not hold what its header lists: {', '.join(sorted(differing))}")
    return header


def read_artifact(
    path: Path, base: Mapping[str, Tensor], base_digest: str, plugins: PluginManager
) -> tuple[Header, dict[str, Tensor]]:
    """Header and decoded tensors of an artifact, by state-dict name, on the CPU.

    Args:
        path: of the file, whose digest the store has checked.
        base: the base's tensors by name.
        base_digest: the base's identity, which the artifact must name.
        plugins: where the encodings are.

    Raises:
        IntegrityError: if it belongs to another base or a tensor is not what the header says.
        PluginError: if an encoding is not installed.
    """
    header = read_header(path)
    if header.base != base_digest:
        raise IntegrityError(f"{path} belongs to the base with digest {header.base}, not to {base_digest}.")
    with safe_open(path, framework="pt") as file:
        decoded = {
            name: _decode(name, entry, {part: file.get_tensor(key(name, part)) for part in entry.parts}, base, plugins)
            for name, entry in header.tensors.items()
        }
    return header, decoded


def _decode(
    name: str, entry: Entry, parts: Mapping[str, Tensor], base: Mapping[str, Tensor], plugins: PluginManager
) -> Tensor:
    try:
        value = plugins.form(entry.encoding).decode(parts, Pieces(base)[name]) if entry.encoding else parts[""]
    except (ValueError, KeyError, RuntimeError) as error:
        raise IntegrityError(f"{name} of an artifact does not decode: {error}") from error
    if tuple(value.shape) != entry.shape or value.dtype != getattr(torch, entry.dtype, None):
        raise IntegrityError(
            f"{name} of an artifact is {value.dtype} {tuple(value.shape)}, its header says {entry.dtype} {entry.shape}."
        )
    return value


def payload(names: Iterable[str], tensors: Mapping[str, Tensor], roles: Mapping[str, str], encoding: Encoding) -> int:
    """Bytes that these tensors of a model would take in an artifact, without its header."""
    return sum(
        encoding.nbytes(tuple(tensors[name].shape)) if is_encoded(name, tensors[name], roles) else tensors[name].nbytes
        for name in names
    )


def lines(header: Header) -> int:
    """Most bytes that a file with this header takes beside its tensors' own."""
    index = {
        key(name, part): {"dtype": "F8_E4M3", "shape": entry.shape, "data_offsets": [10**12, 10**12]}
        for name, entry in header.tensors.items()
        for part in entry.parts
    }
    document = {"__metadata__": {KEY: header.to_json()}, **index}
    return 16 + len(json.dumps(document, separators=(",", ":")).encode())  # its length before it, padding after it
