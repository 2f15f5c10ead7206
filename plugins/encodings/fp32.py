"""fp32: the task's tensor as it is, exact to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

from ..spec import Registrar, hookimpl
from . import Encoding

if TYPE_CHECKING:
    from torch import Tensor


class Float32(Encoding):
    """Stores the effective weights themselves: adding a rounded delta to the base would not give them back."""

    name = "fp32"
    summary = "effective weights in 32 bits, exact"
    exact = True

    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        return {"": value}

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        value = parts[""]
        if value.shape != base.shape or value.dtype != base.dtype:
            raise ValueError(f"expected {base.dtype} {tuple(base.shape)}, found {value.dtype} {tuple(value.shape)}")
        return value

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return 4 * prod(shape)


@hookimpl
def register_encodings(registrar: Registrar) -> None:
    registrar.encoding(Float32())
