"""What each tensor of a model takes when a task stores it: the one table that bounds and budgets are read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ...plugins.architectures.pieces import Pieces
from ...plugins.encodings import Codec, Encoding
from ...plugins.methods import Stored
from ..records import Footprint, Params
from ..store.artifact import codec_of
from ..store.header import HEAD, NORMS, WEIGHTS
from .measure import values


@dataclass(frozen=True)
class Price:
    """What one tensor, or rows of one, takes.

    Attributes:
        part: ``weights``, ``norms`` or ``head``; what a method added counts as weights.
        params: its values; none for integers.
        bytes: as encoded; where that depends on the values, the most.
        codec: what it is put into; None if it is stored as it is.
    """

    part: str
    params: int
    bytes: int
    codec: Codec | None


class Prices(dict[str, Price]):
    """The price of every tensor of a model by its name, and of rows where the partition, so ``roles``, names them."""

    def __init__(self, tensors: Mapping[str, Tensor], roles: Mapping[str, str], encoding: Encoding) -> None:
        pieces = Pieces(tensors)
        for name in (*roles, *(name for name in tensors if name not in roles)):
            tensor = pieces[name]
            codec = codec_of(name, tensor, roles, encoding)
            nbytes = tensor.nbytes if codec is None else codec.nbytes(tuple(tensor.shape))
            self[name] = Price(roles.get(name, WEIGHTS), values(tensor), nbytes, codec)

    def footprint(self, stored: Stored) -> Footprint:
        """What storing these takes, the artifact's header apart."""
        totals = dict.fromkeys((WEIGHTS, NORMS, HEAD), 0)
        for name in stored.tensors:
            totals[self[name].part] += self[name].params
        for name, factors in stored.factors.items():
            totals[self[name].part if name in self else WEIGHTS] += factors.params
        nbytes = sum(self[name].bytes for name in stored.tensors)
        return Footprint(Params(**totals), nbytes + sum(factors.bytes for factors in stored.factors.values()))
