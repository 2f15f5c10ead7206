"""The artifact: one safetensors file a task version. Written once, checked in full before any tensor is used."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ...plugins.architectures.pieces import Pieces, tensor_of
from ...plugins.encodings import COMPRESSED, Codec, Encoding, Form
from ...plugins.encodings.low_rank import LowRankForm
from ...plugins.manager import PluginManager
from ...plugins.methods import Delta
from ..errors import IntegrityError, PluginError, first_line
from ..threads import side_by_side
from .header import HEAD, NORMS, WEIGHTS, Entry, Gate, Header, key
from .packed import INDEX, SMALL, PackedFile, open_packed, text_bytes, write_packed

UNREADABLE = (  # what comes of reading a file of any content
    *(SafetensorError, zlib.error, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    RuntimeError,
)


def write_artifact(
    path: Path,
    delta: Delta,
    originals: Mapping[str, Tensor],
    roles: Mapping[str, str],
    encoding: Encoding,
    plugins: PluginManager,
    **header: Any,
) -> Header:
    """Encode what a task changed into a file, written whole or not at all.

    What its method has a form of its own for is stored in that, thin factors in a smaller one if the encoding has it.
    ``roles`` says ``weights``, ``norms`` or ``head`` for each tensor of the model; what a method added has none.
    ``header`` are the remaining fields of ``Header``.
    """
    draft = _Draft(originals, roles)
    for name, value in sorted(delta.tensors.items()):
        draft.encode(name, value, encoding)
    for name, factors in sorted(delta.factors.items()):
        original, form = draft.based[name], plugins.form(factors.form)
        draft.put(name, *_smaller(form, factors.parts, original, encoding, plugins), original)
    states = [state for state in delta.layers if state.open or state.score is not None]
    gates = tuple(Gate(state.name, state.open, state.score) for state in states)
    brought = packages(plugins, header["method"], encoding.name, draft.entries, {})
    written = Header(encoding=encoding.name, layers=gates, tensors=draft.entries, packages=brought, **header)
    write_packed(path, draft.tensors, written.to_json())
    return written


def recode_artifact(
    path: Path, source: Path, base: Mapping[str, Tensor], encoding: Encoding, plugins: PluginManager
) -> Header:
    """Write the values of an artifact, whose digest the store has checked, anew in another encoding.

    What is in a form of its method's own stays as it is, but for thin factors that the encoding has a smaller form for.
    What is only compressed, or no longer so, is not rounded again. The new file is written whole or not at all.

    Raises:
        IntegrityError: if the source is damaged, or does not fit the base.
        PluginError: if an encoding is not installed.
    """
    with _opened(source) as (header, file):
        require_forms(source, header, plugins)
        roles = {name: entry.part for name, entry in header.tensors.items() if tensor_of(name) in base}
        draft = _Draft(base, roles)
        for name, entry in sorted(header.tensors.items()):
            parts = {part: file.tensor(key(name, part)) for part in entry.parts}
            value = _decode(name, entry, parts, base, plugins)
            form = plugins.form(entry.encoding) if entry.encoding else None
            codec = codec_of(name, value, roles, encoding)
            if isinstance(form, Codec) and codec is not None and codec.core.name == form.core.name:
                original = draft.based[name]
                draft.put(name, codec.name, codec.packed(form.unpacked(parts, original), original), value)
            elif form is None or isinstance(form, Codec):
                draft.encode(name, value, encoding)
            else:
                draft.put(name, *_smaller(form, parts, draft.based[name], encoding, plugins), value)
    brought = packages(plugins, header.method, encoding.name, draft.entries, header.packages)
    recoded = replace(header, encoding=encoding.name, tensors=draft.entries, packages=brought)
    write_packed(path, draft.tensors, recoded.to_json())
    return recoded


def packages(
    plugins: PluginManager, method: str, encoding: str, entries: Mapping[str, Entry], before: Mapping[str, str]
) -> dict[str, str]:
    """What an artifact says of the packages that it needs; ``before`` has those of one that it is made from."""
    trained = before.get(f"method {method}", plugins.package("method", method))
    forms = {entry.encoding.removesuffix(COMPRESSED) for entry in entries.values() if entry.encoding}
    named = {f"form {name}": plugins.package("encoding", name) for name in {*forms, encoding.removesuffix(COMPRESSED)}}
    return {name: package for name, package in {f"method {method}": trained, **named}.items() if package}


def require_forms(path: Path, header: Header, plugins: PluginManager) -> None:
    """Raises PluginError for the first form that an artifact needs and nobody brings, naming who did."""
    for name in sorted({entry.encoding for entry in header.tensors.values() if entry.encoding}):
        inner = name.removesuffix(COMPRESSED)
        if not plugins.package("encoding", inner):
            package = header.packages.get(f"form {inner}", "an unknown package")
            raise PluginError(
                f"{path.name} holds tensors in the form {inner!r} of {package}, which was not found. Install it; "
                "`taps-registry plugins` lists what was found."
            )


def low_rank_form_of(encoding: Encoding, plugins: PluginManager) -> LowRankForm:
    """The form that low-rank factors are put into. Raises PluginError if that is not here, or is something else."""
    form = plugins.form(encoding.low_rank_form)
    if not isinstance(form, LowRankForm):
        raise PluginError(f"{encoding.name} puts factors into {form.name!r}, which is not a LowRankForm.")
    return form


def _smaller(
    form: Form, parts: Mapping[str, Tensor], base: Tensor, encoding: Encoding, plugins: PluginManager
) -> tuple[str, Mapping[str, Tensor]]:
    """Name and parts of the form that an encoding has for thin factors, if these are such and take less in it."""
    wanted = low_rank_form_of(encoding, plugins)
    if wanted.name == form.name or not isinstance(form, LowRankForm):
        return form.name, parts
    smaller = wanted.parts(*form.factors(parts, base))
    taken, before = (sum(part.nbytes for part in some.values()) for some in (smaller, parts))
    return (wanted.name, smaller) if taken < before else (form.name, parts)


class _Draft:
    """An artifact in the making, from the base's tensors by name, and roles as for ``write_artifact``."""

    def __init__(self, originals: Mapping[str, Tensor], roles: Mapping[str, str]) -> None:
        self.based = Pieces(originals)
        self.roles = roles
        self.tensors: dict[str, Tensor] = {}
        self.entries: dict[str, Entry] = {}

    def put(self, name: str, form: str, parts: Mapping[str, Tensor], like: Tensor) -> None:
        """Store these parts, which decode to a tensor like this one."""
        self.tensors.update({key(name, part): tensor for part, tensor in parts.items()})
        dtype = str(like.dtype).removeprefix("torch.")
        part = self.roles.get(name, WEIGHTS)
        self.entries[name] = Entry(part, form, tuple(sorted(parts)), tuple(like.shape), dtype)

    def encode(self, name: str, value: Tensor, encoding: Encoding) -> None:
        """Store a value in what the encoding has for it."""
        codec = codec_of(name, value, self.roles, encoding)
        if codec is None:
            self.put(name, "", {"": value}, value)
        else:
            self.put(name, codec.name, codec.encode(value, self.based[name]), value)


def codec_of(name: str, value: Tensor, roles: Mapping[str, str], encoding: Encoding) -> Codec | None:
    """What a tensor is put into; None for what is stored as it is.

    That is the head, which is trained to be stored exactly, integers, and what a method added to the model.
    """
    role = roles.get(name)
    if role not in (WEIGHTS, NORMS) or not value.is_floating_point():
        return None
    return encoding if role == WEIGHTS and value.ndim > 1 else encoding.vectors


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Header, PackedFile]]:
    """An artifact's header and tensors, held against each other. Raises IntegrityError."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_packed(path))
            header = Header.from_json(file.text)
        except UNREADABLE as error:
            raise IntegrityError(f"{path} is not an artifact of this registry: {first_line(error)}") from error
        differing = file.names().symmetric_difference(header.keys())
        if differing:
            raise IntegrityError(f"{path} does not match its header: {', '.join(sorted(differing))}")
        try:
            yield header, file
        except (SafetensorError, OSError) as error:
            raise IntegrityError(f"{path} cannot be read: {first_line(error)}") from error


def read_header(path: Path) -> Header:
    """What the file says of itself, held against the names of its tensors.

    Raises IntegrityError if it is no artifact.
    """
    with _opened(path) as (header, _):
        return header


def tensor_bytes(path: Path) -> dict[str, int]:
    """Bytes that each tensor of the model takes in an artifact, all its parts together. Raises IntegrityError."""
    with _opened(path) as (header, file):
        return {
            name: sum(file.tensor(key(name, part)).nbytes for part in entry.parts)
            for name, entry in header.tensors.items()
        }


def stored_params(header: Header, plugins: PluginManager) -> dict[str, int]:
    """Values of each part of an artifact, without the parts that hold forms whose values only their method can count.

    Raises PluginError if a form is not installed.
    """
    counts = dict.fromkeys((WEIGHTS, NORMS, HEAD), 0)
    for entry in header.tensors.values():
        if entry.encoding and not isinstance(plugins.form(entry.encoding), Codec):
            counts.pop(entry.part, None)
        elif entry.part in counts and "float" in entry.dtype:
            counts[entry.part] += prod(entry.shape)
    return counts


def is_exact(header: Header, plugins: PluginManager) -> bool:
    """Whether everything that went through an encoding is stored to the last bit."""
    forms = {plugins.form(entry.encoding) for entry in header.tensors.values() if entry.encoding}
    return all(form.exact for form in forms if isinstance(form, Codec | LowRankForm))


def read_artifact(
    path: Path, base: Mapping[str, Tensor], base_digest: str, plugins: PluginManager
) -> tuple[Header, dict[str, Tensor]]:
    """Header and decoded tensors of an artifact, whose digest the store has checked, by state-dict name, on the CPU.

    Raises:
        IntegrityError: if it belongs to another base or a tensor is not what the header says.
        PluginError: if an encoding is not installed.
    """
    with _opened(path) as (header, file):
        if header.base != base_digest:
            raise IntegrityError(f"{path} belongs to the base with digest {header.base}, not to {base_digest}.")
        require_forms(path, header, plugins)
        stored = {
            name: {part: file.tensor(key(name, part)) for part in entry.parts} for name, entry in header.tensors.items()
        }

    def value(name: str) -> Tensor:
        return _decode(name, header.tensors[name], stored[name], base, plugins)

    encoded = [name for name in stored if header.tensors[name].encoding]  # others take less than handing them over
    decoded = dict(zip(encoded, side_by_side(value, encoded), strict=True))
    return header, {name: decoded[name] if name in decoded else value(name) for name in stored}


def _decode(
    name: str, entry: Entry, parts: Mapping[str, Tensor], base: Mapping[str, Tensor], plugins: PluginManager
) -> Tensor:
    try:
        value = plugins.form(entry.encoding).decode(parts, Pieces(base)[name]) if entry.encoding else parts[""]
    except (ValueError, KeyError, RuntimeError) as error:
        raise IntegrityError(f"{name} of an artifact cannot be decoded: {error}") from error
    if tuple(value.shape) != entry.shape or value.dtype != getattr(torch, entry.dtype, None):
        raise IntegrityError(
            f"{name} of an artifact is {value.dtype} {tuple(value.shape)}, but its header says {entry.dtype} "
            f"{entry.shape}."
        )
    return value


def text_and_index(header: Header, sizes: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """Most bytes that a file takes beside its tensors' own, if it holds some of those that a header lists.

    The header has scores of as many digits as they can have; ``sizes`` are bytes of its tensors. Returns what any such
    file takes, and for each tensor what is added if it is there.
    """
    shapes = {key(name, part): entry.shape for name, entry in header.tensors.items() for part in entry.parts}
    text = text_bytes(header.to_json(), shapes)
    each = {name: INDEX * len(header.tensors[name].parts) if size >= SMALL else 0 for name, size in sizes.items()}
    return text + text // 4 + 2 * INDEX, each  # other parts may be listed, and less text compress less well
