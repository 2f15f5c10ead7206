"""What a layer has seen in one call, and the gradients of its weight and of thin factors that follow from it.

With inputs ``x``, gradients ``g`` of the outputs, and ``W = W0 + U D``, summed over images and positions ::

    dL/dW = sum g x^T      dL/dU = sum g (D x)^T      dL/dD = sum (U^T g) x^T      dL/db = sum g
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

Pair = tuple[Tensor, Tensor]  # (C_out, r) and (r, d), or their gradients
Gradients = tuple[Tensor, ...]

BALANCED = 1e-3  # the most that the square of a sum may be of the sum of squares, to be a sum of zero
NARROWEST, EVEN = 16, 8  # products of so many columns and multiples of these take less time than those of fewer


@dataclass(frozen=True)
class Piece:
    """The factors of a weight, or of some rows of one: ``up (C_out, r)`` and ``down (r, d)``."""

    rows: slice
    up: Tensor
    down: Tensor


class Seen(ABC):
    """What one call of a layer has seen: its inputs, and the gradients of its outputs."""

    @staticmethod
    def of(layer: nn.Conv2d | nn.Linear, given: Tensor, gradient: Tensor) -> Seen:
        """What such a layer has seen.

        Args:
            layer: that computes as torch's do.
            given: its inputs.
            gradient: of its outputs; products are in its dtype.
        """
        if isinstance(layer, nn.Linear):
            return Rows(joined(given), joined(gradient))
        if lie_side_by_side(layer):
            return Rows(_patches(given, layer.kernel_size), as_rows(gradient))
        if are_pixels(layer):
            return Rows(as_rows(given[:, :, :: layer.stride[0], :: layer.stride[1]]), as_rows(gradient))
        return FeatureMaps(given, gradient, layer)

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
        centred: whether the mean of the gradients is to be taken from them.
    """

    given: Tensor
    gradient: Tensor
    times: int = 1
    beside: Rows | None = None
    centred: bool = False

    def products(self, pieces: Sequence[Piece], bias: bool = False) -> Gradients:
        """Pieces share the products with the inputs; a bias is a row of ones among them.

        Thin factors have ``r`` columns, and zeros up to ``NARROWEST`` or a multiple of ``EVEN``.
        """
        ranks = [len(piece.down) for piece in pieces]
        rooms = [max(NARROWEST, -(-(rank + bias) // EVEN) * EVEN) for rank in ranks]
        places = [slice(end - room, end) for room, end in zip(rooms, accumulate(rooms), strict=True)]
        like = self.gradient
        downs = like.new_zeros(sum(rooms), self.given.shape[1])
        ups = [like.new_zeros(len(piece.up), room) for room, piece in zip(rooms, pieces, strict=True)]
        of_ups = [torch.zeros_like(up) for up in ups]
        of_downs = torch.zeros_like(downs.T)
        for piece, place, up, rank in zip(pieces, places, ups, ranks, strict=True):
            downs[place][:rank] = piece.down
            up[:, :rank] = piece.up
        rows: Rows | None = self
        while rows is not None:
            given = rows.given.to(like.dtype)
            inner, thin = rows._centre(given @ downs.T), []
            for piece, place, up, of_up, rank in zip(pieces, places, ups, of_ups, ranks, strict=True):
                own = rows.gradient[:, piece.rows]
                thin.append(rows._centre(own @ up))
                inner[:, place][:, rank:] = 1.0
                of_up.addmm_(own.T, inner[:, place], alpha=rows.times)
            of_downs.addmm_(given.T, torch.cat(thin, 1) if len(thin) > 1 else thin[0], alpha=rows.times)
            rows = rows.beside
        found: list[Tensor] = []
        for piece, place, of_up, rank in zip(pieces, places, of_ups, ranks, strict=True):
            found += of_up[:, :rank].to(piece.up.dtype), of_downs[:, place][:, :rank].T.to(piece.down.dtype)
            if bias:
                found.append(of_up[:, rank].to(piece.up.dtype))
        return tuple(found)

    def _centre(self, rows: Tensor) -> Tensor:
        return rows.sub_(rows.mean(0)) if self.centred else rows

    def product(self, weight: Tensor) -> Tensor:
        gradient = self._centre(self.gradient.clone()) if self.centred else self.gradient
        made = self.times * (gradient.T @ self.given.to(gradient.dtype)).to(weight.dtype).reshape(weight.shape)
        return made if self.beside is None else made + self.beside.product(weight)


@dataclass(frozen=True)
class FeatureMaps(Seen):
    """Feature maps over which a layer has moved its filters.

    Attributes:
        given: inputs, ``(N, C_in, H, W)``.
        gradient: of the outputs, ``(N, C_out, h, w)``.
        layer: that has the filters.
    """

    given: Tensor
    gradient: Tensor
    layer: nn.Conv2d

    def products(self, pieces: Sequence[Piece], bias: bool = False) -> Gradients:
        return tuple(gradient for piece in pieces for gradient in self._products(piece))

    def _products(self, piece: Piece) -> Pair:
        gradient, up, down = self.gradient[:, piece.rows], piece.up, piece.down
        given, outputs = self.given.to(gradient.dtype), as_rows(gradient)
        kernel = down.to(given.dtype).reshape(len(down), -1, *self.layer.kernel_size)
        inner = as_rows(functional.conv2d(given, kernel, None, *self._place))
        thin = (outputs @ up.to(outputs.dtype)).reshape(len(gradient), *gradient.shape[2:], -1)
        of_up = (inner.T @ outputs).T
        of_down = self._of_weight(kernel.shape, thin.movedim(-1, 1))
        return of_up.to(up.dtype), of_down.to(down.dtype).reshape(down.shape)

    def product(self, weight: Tensor) -> Tensor:
        return self._of_weight(weight.shape, self.gradient).to(weight.dtype)

    @property
    def _place(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Stride, padding and dilation."""
        return self.layer.stride, cast(tuple[int, ...], self.layer.padding), self.layer.dilation

    def _of_weight(self, shape: Sequence[int], gradient: Tensor) -> Tensor:
        """The gradient of a weight of this shape, from that of its outputs."""
        given = self.given.to(gradient.dtype)
        made: Tensor = conv2d_weight(given, list(shape), gradient, *self._place)  # type: ignore[no-untyped-call]
        return made


@dataclass(frozen=True)
class Windows(Seen):
    """Rows whose inputs are what filters see, pixel by pixel, while weights have all pixels of a channel together.

    Attributes:
        rows: inputs are ``(n, kh kw C_in)``.
        size: ``kh, kw``.
    """

    rows: Rows
    size: tuple[int, ...]

    def products(self, pieces: Sequence[Piece], bias: bool = False) -> Gradients:
        turned = [replace(piece, down=self._by_pixels(piece.down)) for piece in pieces]
        found = self.rows.products(turned)
        return tuple(self._by_channels(one) if index % 2 else one for index, one in enumerate(found))

    def product(self, weight: Tensor) -> Tensor:
        return self._by_channels(self.rows.product(self._by_pixels(weight))).reshape(weight.shape)

    def _by_pixels(self, weight: Tensor) -> Tensor:
        """From ``(n, C_in kh kw)``, or such a weight."""
        return weight.reshape(len(weight), -1, *self.size).movedim(1, -1).flatten(1)

    def _by_channels(self, weight: Tensor) -> Tensor:
        """The way back, to ``(n, C_in kh kw)``."""
        return weight.reshape(len(weight), *self.size, -1).movedim(-1, 1).flatten(1)


def chained(whole: Tensor, pair: Pair) -> Pair:
    """``dL/dU`` and ``dL/dD`` from ``dL/dW``, by the chain rule; of all rows that these factors are of."""
    up, down = (factor.detach() for factor in pair)
    whole = whole.reshape(len(up), -1).to(up.dtype)
    return whole @ down.T, up.T @ whole


def sums_to_zero(gradient: Tensor, channels: int) -> bool:
    """Whether gradients do, in every channel of a layer's outputs, over images and positions, if they are finite.

    Args:
        gradient: of the outputs.
        channels: the axis of their channels.
    """
    exact = joined(gradient.movedim(channels, -1)).float()
    return not exact.sum(0).square().sum() > BALANCED * exact.square().sum()  # NaN says nothing


def lie_side_by_side(layer: nn.Conv2d) -> bool:
    """Whether its filters see every pixel once, as those of a patch embedding do."""
    return layer.kernel_size == layer.stride != (1, 1) and layer.padding == (0, 0) and layer.dilation == (1, 1)


def are_pixels(layer: nn.Conv2d) -> bool:
    """Whether its filters are of 1x1: products of matrices take less time than convolutions then."""
    return layer.kernel_size == (1, 1) and layer.padding == (0, 0)


def joined(sequences: Tensor) -> Tensor:
    """``(..., C)`` as rows, ``(n, C)``."""
    return sequences.reshape(-1, sequences.shape[-1])


def _patches(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """What filters see that lie side by side, ``(N h w, C_in kh kw)``: neighbours share no pixel."""
    (kh, kw), (count, channels) = size, maps.shape[:2]
    h, w = maps.shape[2] // kh, maps.shape[3] // kw
    whole = maps[:, :, : h * kh, : w * kw].reshape(count, channels, h, kh, w, kw)
    return whole.permute(0, 2, 4, 1, 3, 5).flatten(0, 2).flatten(1)


def as_rows(maps: Tensor) -> Tensor:
    """Positions before channels, ``(N H W, C)``; as maps lie in memory, without a copy."""
    return joined(maps.movedim(1, -1))
