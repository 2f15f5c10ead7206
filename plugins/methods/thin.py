"""What a layer has seen in one call, and the gradients of its weight and of thin factors that follow from it.

With inputs ``x``, gradients ``g`` of the outputs, and ``W = W0 + U D``, summed over images and positions ::

    dL/dW = sum g x^T            dL/dU = sum g (D x)^T            dL/dD = sum (U^T g) x^T

In large pictures, neighbouring positions tell much the same, and every other row and column of them is a quarter of the
work. With 16 of 64 positions, in the first stages of the benchmark's ResNet and DenseNet, 10 % of the storage gave
0.4 +- 0.2 points less with thin factors and 0.3 +- 0.2 with whole weights, and 1 % 0.3 +- 0.4. A large picture has
twice as many at least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

Pair = tuple[Tensor, Tensor]  # (C_out, r) and (r, d), or their gradients

PLENTY = 128  # positions of a picture
TURNS = ((0, 0), (1, 1), (0, 1), (1, 0))  # the first row and column of every other


@dataclass(frozen=True)
class Seen:
    """What one call of a layer has seen, as pictures: a linear layer is a convolution of 1x1.

    Attributes:
        given: inputs, ``(N, C_in, H, W)``.
        gradient: of the outputs, ``(N, C_out, h, w)``.
        size: of the filters, in height and width, as are stride, padding and dilation.
        linear: whether the layer was one.
        times: what a position counts for.
    """

    given: Tensor
    gradient: Tensor
    size: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    linear: bool = False
    times: int = 1

    @classmethod
    def of(cls, module: nn.Conv2d | nn.Linear, given: Tensor, gradient: Tensor, rows: slice) -> Seen:
        """What such a layer has seen, of those outputs that these rows of its weight make."""
        if isinstance(module, nn.Linear):
            return cls(_as_pictures(given), _channels(_as_pictures(gradient), rows), linear=True)
        place = module.kernel_size, module.stride, cast(tuple[int, ...], module.padding), module.dilation
        return cls(given, _channels(gradient, rows), *place)

    @property
    def is_plenty(self) -> bool:
        """Whether a quarter of the positions tells as much."""
        height, width = self.gradient.shape[2:]
        return min(height, width) > 1 and height * width >= PLENTY

    def quarter(self, turn: int) -> Seen:
        """Every other row and column of the outputs, each position for four; four turns see all of them."""
        offsets = TURNS[turn % len(TURNS)]
        gradient = _every_other(self.gradient, offsets, (1, 1))
        if self.size == (1, 1) and self.padding == (0, 0):
            return Seen(_every_other(self.given, offsets, self.stride), gradient, linear=self.linear, times=4)
        edges: list[int] = []
        for axis in (1, 0):  # as ``pad`` takes them
            before = self.padding[axis] - offsets[axis] * self.stride[axis]
            steps = 2 * self.stride[axis] * (gradient.shape[2 + axis] - 1)
            reach = steps + self.dilation[axis] * (self.size[axis] - 1) + 1
            edges += before, reach - before - self.given.shape[2 + axis]
        stride = (2 * self.stride[0], 2 * self.stride[1])
        return Seen(functional.pad(self.given, edges), gradient, self.size, stride, dilation=self.dilation, times=4)

    def products(self, up: Tensor, down: Tensor) -> Pair:
        """``dL/dU (C_out, r)`` and ``dL/dD (r, d)``, in the dtypes of ``U`` and ``D``."""
        made = self._products(up.to(self.gradient), down.to(self.gradient))
        of_up, of_down = (
            self.times * one.to(factor).reshape(factor.shape) for one, factor in zip(made, (up, down), strict=True)
        )
        return of_up, of_down

    def product(self, weight: Tensor) -> Tensor:
        """``dL/dW``, in the shape and dtype of ``W``."""
        if self.linear and not _has_onednn(self.given):
            inputs, outputs = self._as_rows()
            made = outputs.T @ inputs
        else:
            kernel = [len(weight), self.given.shape[1], *self.size]
            made = conv2d_weight(  # type: ignore[no-untyped-call]
                self.given, kernel, self.gradient, self.stride, self.padding, self.dilation
            )
        return self.times * made.to(weight).reshape(weight.shape)

    def _as_rows(self) -> Pair:
        """Inputs and gradients with positions before channels."""
        inputs, outputs = (some.movedim(1, -1).flatten(0, -2) for some in (self.given, self.gradient))
        return inputs, outputs

    def _products(self, up: Tensor, down: Tensor) -> Pair:
        if self.linear and not _has_onednn(self.given):
            inputs, outputs = self._as_rows()
            return outputs.T @ (inputs @ down.T), (outputs @ up).T @ inputs
        kernel, place = down.reshape(len(down), -1, *self.size), (self.stride, self.padding, self.dilation)
        inner = functional.conv2d(self.given, kernel, None, *place)
        thin = functional.conv2d(self.gradient, up.T[:, :, None, None])
        of_up = conv2d_weight(inner, [*up.shape, 1, 1], self.gradient)  # type: ignore[no-untyped-call]
        of_down = conv2d_weight(self.given, list(kernel.shape), thin, *place)  # type: ignore[no-untyped-call]
        return of_up, of_down


def _as_pictures(rows: Tensor) -> Tensor:
    """``(N, H, W, C)`` with channels before; any other rows of ``C`` values as a picture of one line."""
    pictures = rows if rows.ndim == 4 else rows.reshape(1, 1, -1, rows.shape[-1])
    return pictures.movedim(-1, 1)


def _channels(pictures: Tensor, some: slice) -> Tensor:
    """Some channels of pictures, end to end in memory: convolutions would copy them once each."""
    return pictures if some == slice(None) else pictures[:, some].contiguous(memory_format=torch.channels_last)


def _every_other(pictures: Tensor, offsets: tuple[int, int], stride: tuple[int, ...]) -> Tensor:
    """Every other row and column of those that a stride leaves."""
    rows, columns = (slice(offset * step, None, 2 * step) for offset, step in zip(offsets, stride, strict=True))
    return pictures[:, :, rows, columns].contiguous(memory_format=torch.channels_last)


def _has_onednn(tensor: Tensor) -> bool:
    """Whether convolutions of it are oneDNN's, which are faster than other libraries' products of matrices."""
    return tensor.is_cpu and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
