"""The contract of an encoding: how one layer that a task changed becomes tensors of its artifact, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Encoding"]


class Encoding(ABC):
    """Stores one floating-point tensor of a layer. The artifact names its encoding, so the data choose their decoder.

    Attributes:
        name: what ``add-task --encoding`` and the artifact's header call it; it must never change its meaning.
        summary: one line for ``taps-registry plugins`` and the docs.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        """Encode ``value``, given what the base has in its place.

        Args:
            value: the task's float32 tensor on the CPU.
            base: the base's, of the same shape.

        Returns:
            The tensors to store, by a part name; "" for the only or main one.
        """

    @abstractmethod
    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        """The task's float32 tensor, of the base's shape; the same on every machine.

        Raises:
            ValueError: if the parts are not what ``encode`` makes for a base of this shape.
        """

    @abstractmethod
    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes that the parts of a tensor of this shape take."""
