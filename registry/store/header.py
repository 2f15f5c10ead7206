"""What an artifact says of itself: one JSON text before its tensors. See docs/artifact-format.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..records import InputConfig

FORMAT = 1
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
        parsed = cls(**{**raw, "parts": tuple(raw["parts"]), "shape": tuple(raw["shape"])})
        if not all(isinstance(text, str) for text in (parsed.part, parsed.encoding, parsed.dtype, *parsed.parts)):
            raise ValueError("part, encoding, dtype and parts of a tensor must be strings")
        return parsed


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
        layers: those that are open or have a score, in forward order.
        tensors: by state-dict name; ``name[0:64]`` for rows of one.
        extension: arguments of the method's ``extend``; empty if it adds no modules to the model.
        common: digest of the object that holds those tensors of them that several tasks have in common; empty if none.
        packages: of the method and each form, with their versions: ``{"method taps": "taps-registry 0.1.0"}``.
    """

    base: str
    method: str
    encoding: str
    classes: tuple[str, ...]
    input: Mapping[str, Any]
    layers: tuple[Gate, ...]
    tensors: Mapping[str, Entry]
    extension: Mapping[str, Any]
    common: str
    packages: Mapping[str, str]
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Header:
        """Raises ValueError, KeyError or TypeError if the text is not what ``to_json`` writes."""
        raw = json.loads(text)
        _require_format(raw["format"])
        entries = {name: Entry.from_json(entry) for name, entry in raw["tensors"].items()}
        gates = tuple(Gate(**gate) for gate in raw["layers"])
        parsed = cls(**{**raw, "classes": tuple(raw["classes"]), "layers": gates, "tensors": entries})
        if not (isinstance(parsed.extension, dict) and isinstance(parsed.packages, dict)):
            raise ValueError("extension and packages must be objects")
        for text in (
            parsed.base,
            parsed.method,
            parsed.encoding,
            parsed.common,
            *parsed.classes,
            *(gate.name for gate in gates),
        ):
            if not isinstance(text, str):
                raise ValueError(f"names of base, method, encoding, classes and layers must be strings, not {text!r}")
        parsed.config()
        return parsed

    def config(self) -> InputConfig:
        """What images are turned into."""
        return InputConfig.from_json(self.input)

    def keys(self) -> set[str]:
        """Names of the tensors that the file must hold, no more and no fewer."""
        return {key(name, part) for name, entry in self.tensors.items() for part in entry.parts}


def key(name: str, part: str) -> str:
    """Name in the file of a part of a tensor."""
    return f"{name}{PARTS}{part}" if part else name


def _require_format(number: object) -> None:
    """Raises ValueError for any other than ours."""
    if isinstance(number, int) and number > FORMAT:
        raise ValueError(
            f"it has format {number}, this version reads {FORMAT}. Type: pip install --upgrade taps-registry"
        )
    if number != FORMAT:
        raise ValueError(f"it has the unknown format {number!r}, this version reads {FORMAT}")
