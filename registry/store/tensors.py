"""Named tensors: their identity, and safetensors files of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, uint8

from ..errors import IntegrityError, StorageError, first_line
from .files import in_place


class OnDisk(Mapping[str, Tensor]):
    """Tensors of a safetensors file, on the CPU, each read when it is first asked for. Nobody writes to them.

    Raises IntegrityError if the file is not there or not of that kind.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _reading(path):
            self._file = cast(Any, safe_open(path, framework="pt"))
            self._read: dict[str, Tensor | None] = dict.fromkeys(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._read[name]
        if tensor is None:
            with _reading(self._path):
                tensor = self._read[name] = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{path} cannot be read as safetensors: {first_line(error)}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU. Raises IntegrityError if it is not there or not of that kind."""
    with _reading(path):
        return load_file(path)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes in the order of the names: the identity of a base.

    Two files with the same tensors have the same digest, whatever their headers, order or alignment.
    """
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        described = f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{tuple(tensor.shape)}\0{tensor.nbytes}\n"
        whole.update(described.encode())
        whole.update(tensor.detach().cpu().contiguous().reshape(-1).view(uint8).numpy().data)
    return whole.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all; tensors that share memory are written out separately.

    The file's bytes depend on nothing but its content with at most one key of metadata. Raises StorageError.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with in_place(path) as draft:
        try:
            save_file(plain, draft, dict(metadata) if metadata else None)
        except SafetensorError as error:
            raise StorageError(f"Cannot write {path}: {error}. Nothing was changed.") from error
