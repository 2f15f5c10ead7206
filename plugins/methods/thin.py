"""What a layer has seen in one call, and the gradients of its weight and of thin factors that follow from it.

With inputs ``x``, gradients ``g`` of the outputs, and ``W = W0 + U D``, summed over images and positions ::

    dL/dW = sum g x^T      dL/dU = sum g (D x)^T      dL/dD = sum (U^T g) x^T      dL/db = sum g

In large feature maps, neighbouring positions are redundant, and every other row and column is a quarter of the work.
With 16 of 64 positions, in the first stages of the benchmark's ResNet and DenseNet, 10 % of the storage gave 0.4 +- 0.2
points less with low-rank factors and 0.3 +- 0.2 with whole weights, and 1 % 0.3 +- 0.4. A large map has twice as many
at least.

Of a transformer's patches, every other is taken: as rows of a matrix they need no copy. With 32 of 64 patches, 10 % of
the storage gave 0.3 +- 0.6 points less, with 16 of them 2.0 +- 0.6; with 51 of 256, 1.5 +- 0.6 less than with 128.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import prod
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

Pair = tuple[Tensor, Tensor]  # (C_out, r) and (r, d), or their gradients
Gradients = tuple[Tensor, ...]

PLENTY = 128  # positions of a feature map, or patches of an image
TURNS = ((0, 0), (1, 1), (0, 1), (1, 0))  # the first row and column of every other
EVEN = 8  # products of so many rows, or multiples, take less time than those of fewer


@dataclass(frozen=True)
class Tokens:
    """What a transformer makes of an image: some tokens of another kind first, such as the class's, then patches."""

    own: int
    patches: int

    @classmethod
    def of(cls, model: nn.Module) -> Tokens | None:
        """Those of a timm model that tells; None of others."""
        size = getattr(getattr(model, "patch_embed", None), "grid_size", None)
        return None if size is None else cls(getattr(model, "num_prefix_tokens", 0), prod(size))

    def __len__(self) -> int:
        return self.own + self.patches


@dataclass(frozen=True)
class Piece:
    """The factors of a weight, or of some rows of one: ``up (C_out, r)`` and ``down (r, d)``."""

    rows: slice
    up: Tensor
    down: Tensor


class Seen(ABC):
    """What one call of a layer has seen: its inputs, and the gradients of its outputs."""

    @staticmethod
    def of(module: nn.Conv2d | nn.Linear, given: Tensor, gradient: Tensor, tokens: Tokens | None = None) -> Seen:
        """What such a layer has seen.

        Args:
            module: the layer.
            given: its inputs.
            gradient: of its outputs; products are in its dtype.
            tokens: what an image is, if it may lie in ``given`` as a sequence.
        """
        if isinstance(module, nn.Linear):
            if given.ndim == 4:
                return FeatureMaps(given.movedim(-1, 1), gradient.movedim(-1, 1))
            if given.ndim == 3 and tokens is not None and given.shape[1] == len(tokens):
                return Sequences(given, gradient, tokens)
            return Rows(_joined(given), _joined(gradient))
        size, stride, padding = module.kernel_size, module.stride, cast(tuple[int, ...], module.padding)
        if size == (1, 1) and padding == (0, 0):
            return FeatureMaps(given[:, :, :: stride[0], :: stride[1]], gradient)
        if size == stride and padding == (0, 0) and module.dilation == (1, 1):
            return Rows(_patches(given, size), _as_rows(gradient))
        return FeatureMaps(given, gradient, size, stride, padding, module.dilation)

    def sample(self, turn: int) -> Seen:
        """Where there is plenty, what is to stand for it; turn by turn, all positions are seen alike."""
        return self

    @abstractmethod
    def products(self, pieces: Sequence[Piece], bias: bool = False) -> Gradients:
        """``dL/dU (C_out, r)`` and ``dL/dD (r, d)`` of each piece, in the dtypes of ``U`` and ``D``.

        Args:
            pieces: of the layer's weight.
            bias: whether ``dL/db (C_out)`` of its rows is to come after those of each piece; only of linear layers.
        """

    @abstractmethod
    def product(self, weight: Tensor) -> Tensor:
        """``dL/dW``, in the shape and dtype of ``W``."""


@dataclass(frozen=True)
class Rows(Seen):
    """Each position of the outputs follows from the same one of the inputs.

    Attributes:
        given: inputs, ``(n, C_in)``.
        gradient: of the outputs, ``(n, C_out)``.
        times: what a row counts for.
        beside: other rows, which count as well.
    """

    given: Tensor
    gradient: Tensor
    times: int = 1
    beside: Rows | None = None

    def products(self, pieces: Sequence[Piece], bias: bool = False) -> Gradients:
        """Pieces share the products with the inputs; a bias is a row of ones among them.

        Thin factors have ``r`` rows, and zeros up to a multiple of ``EVEN``.
        """
        ranks = [len(piece.down) for piece in pieces]
        rooms = [-(-(rank + bias) // EVEN) * EVEN for rank in ranks]
        places = [slice(end - room, end) for room, end in zip(rooms, accumulate(rooms), strict=True)]
        like = self.gradient
        downs = like.new_zeros(sum(rooms), self.given.shape[1])
        ups = [like.new_zeros(room, len(piece.up)) for room, piece in zip(rooms, pieces, strict=True)]
        of_ups = [torch.zeros_like(up) for up in ups]
        of_downs = torch.zeros_like(downs)
        for piece, place, up, rank in zip(pieces, places, ups, ranks, strict=True):
            downs[place][:rank] = piece.down
            up[:rank] = piece.up.T
        rows: Rows | None = self
        while rows is not None:
            given = rows.given.to(like.dtype)
            inner, thin = downs @ given.T, like.new_empty(len(downs), len(given))
            for piece, place, up, of_up, rank in zip(pieces, places, ups, of_ups, ranks, strict=True):
                own = rows.gradient[:, piece.rows]
                torch.mm(up, own.T, out=thin[place])
                inner[place][rank:] = 1.0
                of_up.addmm_(inner[place], own, alpha=rows.times)
            of_downs.addmm_(thin, given, alpha=rows.times)
            rows = rows.beside
        found: list[Tensor] = []
        for piece, place, of_up, rank in zip(pieces, places, of_ups, ranks, strict=True):
            found += of_up[:rank].T.to(piece.up.dtype), of_downs[place][:rank].to(piece.down.dtype)
            if bias:
                found.append(of_up[rank].to(piece.up.dtype))
        return tuple(found)

    def product(self, weight: Tensor) -> Tensor:
        made = self.times * (self.gradient.T @ self.given.to(self.gradient.dtype)).to(weight.dtype).reshape(
            weight.shape
        )
        return made if self.beside is None else made + self.beside.product(weight)


@dataclass(frozen=True)
class Sequences(Seen):
    """Images that lie in memory as sequences of tokens.

    Attributes:
        given: inputs, ``(N, T, C_in)``.
        gradient: of the outputs, ``(N, T, C_out)``.
        tokens: what the ``T`` of an image are.
    """

    given: Tensor
    gradient: Tensor
    tokens: Tokens

    def sample(self, turn: int) -> Seen:
        """Every other token, each for two; beside them what the tokens of another kind lack or have too much of."""
        if self.tokens.patches < PLENTY:
            return self
        first, own, rows = turn % 2, self.tokens.own, self._rows
        beside = None
        if own:
            lacking = _lacking(len(self.given), self.tokens, first, self.gradient.device, self.gradient.dtype)
            beside = Rows(_joined(self.given[:, :own]), _joined(self.gradient[:, :own]) * lacking)
        return Rows(rows.given[first::2], rows.gradient[first::2], times=2, beside=beside)

    def products(self, pieces: Sequence[Piece], bias: bool = False) -> Gradients:
        return self._rows.products(pieces, bias)

    def product(self, weight: Tensor) -> Tensor:
        return self._rows.product(weight)

    @property
    def _rows(self) -> Rows:
        return Rows(_joined(self.given), _joined(self.gradient))


@dataclass(frozen=True)
class FeatureMaps(Seen):
    """Feature maps over which a layer has moved its filters; those of a linear layer are of 1x1.

    Where filters are of 1x1, products of matrices with positions as rows take less time than convolutions.

    Attributes:
        given: inputs, ``(N, C_in, H, W)``.
        gradient: of the outputs, ``(N, C_out, h, w)``.
        size: of the filters, in height and width, as are stride, padding and dilation.
        times: what a position counts for.
    """

    given: Tensor
    gradient: Tensor
    size: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    times: int = 1

    def sample(self, turn: int) -> Seen:
        """Every other row and column of the outputs, each position for four."""
        return self._quarter(TURNS[turn % len(TURNS)]) if self._are_plenty else self

    @property
    def _are_plenty(self) -> bool:
        """Whether a sample of the positions tells as much."""
        height, width = self.gradient.shape[2:]
        return min(height, width) > 1 and height * width >= PLENTY

    def _quarter(self, offsets: tuple[int, int]) -> Seen:
        gradient = _every_other(self.gradient, offsets)
        if self._are_rows:
            return Rows(_as_rows(_every_other(self.given, offsets)), _as_rows(gradient), times=4)
        edges: list[int] = []
        for axis in (1, 0):  # as ``pad`` takes them
            before = self.padding[axis] - offsets[axis] * self.stride[axis]
            steps = 2 * self.stride[axis] * (gradient.shape[2 + axis] - 1)
            reach = steps + self.dilation[axis] * (self.size[axis] - 1) + 1
            edges += before, reach - before - self.given.shape[2 + axis]
        stride = (2 * self.stride[0], 2 * self.stride[1])
        given = functional.pad(self.given, edges)
        return FeatureMaps(given, gradient, self.size, stride, dilation=self.dilation, times=4)

    def products(self, pieces: Sequence[Piece], bias: bool = False) -> Gradients:
        if self._are_rows:
            return self._rows.products(pieces, bias)
        return tuple(gradient for piece in pieces for gradient in self._products(piece))

    def _products(self, piece: Piece) -> Pair:
        gradient, up, down = self.gradient[:, piece.rows], piece.up, piece.down
        given, outputs = self.given.to(gradient.dtype), _as_rows(gradient)
        kernel = down.to(given.dtype).reshape(len(down), -1, *self.size)
        inner = _as_rows(functional.conv2d(given, kernel, None, self.stride, self.padding, self.dilation))
        thin = (outputs @ up.to(outputs.dtype)).reshape(len(gradient), *gradient.shape[2:], -1)
        of_up = (inner.T @ outputs).T
        of_down = self._of_weight(kernel.shape, thin.movedim(-1, 1))
        return self.times * of_up.to(up.dtype), self.times * of_down.to(down.dtype).reshape(down.shape)

    def product(self, weight: Tensor) -> Tensor:
        if self._are_rows:
            return self._rows.product(weight)
        made = self._of_weight((len(weight), self.given.shape[1], *self.size), self.gradient)
        return self.times * made.to(weight.dtype).reshape(weight.shape)

    @property
    def _are_rows(self) -> bool:
        return self.size == self.stride == (1, 1) and self.padding == (0, 0)

    @property
    def _rows(self) -> Rows:
        return Rows(_as_rows(self.given), _as_rows(self.gradient))

    def _of_weight(self, shape: Sequence[int], gradient: Tensor) -> Tensor:
        """The gradient of a weight of this shape, from that of its outputs."""
        place = self.stride, self.padding, self.dilation
        given = self.given.to(gradient.dtype)
        made: Tensor = conv2d_weight(given, list(shape), gradient, *place)  # type: ignore[no-untyped-call]
        return made


@lru_cache(maxsize=8)
def _lacking(images: int, tokens: Tokens, first: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """How often each token that is no patch is still to be counted when every other of all has been taken for two.

    Returns:
        ``(images * own, 1)``.
    """
    lacking = torch.ones(images * len(tokens), device=device, dtype=dtype)
    lacking[first::2] = -1
    return lacking.reshape(images, -1)[:, : tokens.own].reshape(-1, 1)


def _joined(sequences: Tensor) -> Tensor:
    """``(..., C)`` as rows, ``(n, C)``."""
    return sequences.reshape(-1, sequences.shape[-1])


def _patches(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """What filters see that lie side by side, ``(N h w, C_in kh kw)``: neighbours share no pixel."""
    (kh, kw), (count, channels) = size, maps.shape[:2]
    h, w = maps.shape[2] // kh, maps.shape[3] // kw
    whole = maps[:, :, : h * kh, : w * kw].reshape(count, channels, h, kh, w, kw)
    return whole.permute(0, 2, 4, 1, 3, 5).flatten(0, 2).flatten(1)


def _every_other(maps: Tensor, offsets: tuple[int, int]) -> Tensor:
    return maps[:, :, offsets[0] :: 2, offsets[1] :: 2].contiguous(memory_format=torch.channels_last)


def _as_rows(maps: Tensor) -> Tensor:
    """Positions before channels, ``(N H W, C)``; as maps lie in memory, without a copy."""
    return _joined(maps.movedim(1, -1))
