"""The contract of an encoding: how one layer that a task changed becomes tensors of its artifact, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from ..guard import Guarded

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Codec", "Encoding", "Form"]

COMPRESSED = "+zstd"  # ends the name of an encoding whose parts are compressed


class Form(Guarded, ABC):
    """How a tensor is read back from an artifact, which names its forms: the data choose their decoder.

    A method that computes weights from factors of its own (low-rank matrices, a mask, ...) registers the form they are
    stored in; ``Codec`` is a form that any method's values can be put into.

    Attributes:
        name: what the artifact's header calls it; it must never change its meaning.
        summary: one line for ``taps-registry plugins`` and the docs.
    """

    kind: ClassVar[str] = "form"
    returns: ClassVar[dict[str, str]] = {"decode": "torch:Tensor", "encode": "builtins:dict", "nbytes": "builtins:int"}
    blames: ClassVar[dict[str, tuple[type[Exception], ...]]] = {
        "decode": (ValueError, KeyError),
        "factors": (ValueError, KeyError),
        "unpacked": (ValueError, KeyError),
    }

    name: str
    summary: str

    @abstractmethod
    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        """The task's float32 tensor, of the base's shape; the same on every machine.

        Args:
            parts: as they were stored, by part name.
            base: what the base has in its place; not to be written to.

        Raises:
            ValueError: if the parts are not what is stored for a base of this shape.
        """


class Codec(Form):
    """Stores one floating-point tensor, whatever method it comes from.

    Attributes:
        exact: whether every value comes back to the last bit.
        fixed: whether the parts take what ``nbytes`` says; if not, that is the most they take.
    """

    exact: bool = False
    fixed: bool = True

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
    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes that the parts of a tensor of this shape take, exactly or at most."""

    # For a codec that is put upon another one

    @property
    def core(self) -> Codec:
        """The codec that decides on the values: this one, or the one that it is put upon."""
        return self

    def unpacked(self, parts: Mapping[str, Tensor], base: Tensor) -> Mapping[str, Tensor]:
        """The core's parts, out of these. Raises ValueError as ``decode`` does."""
        return parts

    def packed(self, parts: Mapping[str, Tensor], base: Tensor) -> Mapping[str, Tensor]:
        """These parts, out of the core's."""
        return parts


class Encoding(Codec):
    """What ``add-task --encoding`` names: stores weights of two or more dimensions.

    Attributes:
        vectors: what norms, and weights of fewer dimensions, are put into; None to store them as they are.
        low_rank_form: name of the ``LowRankForm`` that low-rank factors of a method's own are put into.
    """

    kind: ClassVar[str] = "encoding"

    vectors: Codec | None = None
    low_rank_form: str = "low-rank"


def expect(parts: Mapping[str, Tensor], name: str, shape: tuple[int, ...], dtype: object) -> Tensor:
    """The part of this name. Raises ValueError if it is missing, or of another shape or dtype."""
    part = parts.get(name)
    if part is None or tuple(part.shape) != shape or part.dtype != dtype:
        found = "nothing" if part is None else f"{part.dtype} {tuple(part.shape)}"
        raise ValueError(f"expected {dtype} {shape} for {name or 'the tensor'}, found {found}")
    return part
