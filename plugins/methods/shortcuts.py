"""Gradients of low-rank factors without the gradient of the weight.

A layer's backward pass makes ``G = dL/dW``, which costs what the forward pass costs. With ``W = W0 + U D`` it is only
needed for ``dL/dU = G D^T`` and ``dL/dD = U^T G``. From the layer's inputs ``x`` and the gradients ``g`` of its
outputs, summed over images and positions, these are

    ``dL/dU = sum g (D x)^T``    and    ``dL/dD = sum (U^T g) x^T``,

products of the rank's width: a convolution with ``r`` filters, a 1x1 one, and the gradients of both. The forward pass
stays the model's own, with ``W`` in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from ..architectures.pieces import tensor_of
from . import Live

CHEAPER = 0.5  # what a shortcut may cost, in multiplications, against the gradient of the weight
TOLERANCE = 0.05  # how far it may be from the long way, against the size of the gradient

PLAIN: tuple[Any, ...] = ((1, 1), (0, 0), (1, 1))  # stride, padding and dilation

Pair = tuple[Tensor, Tensor]  # (C_out, r) and (r, d), or their gradients


class Shortcut:
    """The gradients of one weight's factors, collected while the model's backward pass runs.

    It is on trial at first: the weight has its gradient as well, and the two are held against each other. They differ
    where a model uses the weight otherwise than by calling the layer that owns it.

    Args:
        module: a linear layer or a convolution that computes as torch's do.
        live: its weight, or rows of it.
        factors: gives ``(C_out, r)`` and ``(r, d)`` as they are now.

    Attributes:
        trusted: whether the weight needs no gradient any more; None on trial.
    """

    def __init__(self, module: nn.Conv2d | nn.Linear, live: Live, factors: Callable[[], Pair]) -> None:
        self.module = module
        self.live = live
        self.factors = factors
        self.rows = slice(None) if live.rows is None else live.rows
        self.trusted: bool | None = None
        self.found: Pair | None = None
        self._handle = module.register_forward_hook(self._listen)

    def close(self) -> None:
        """Leave the module as it was."""
        self._handle.remove()

    def _listen(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad and len(inputs) == 1 and inputs[0].requires_grad:
            given = inputs[0].detach()
            output.register_hook(lambda gradient: self._learn(given, gradient))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _learn(self, given: Tensor, gradient: Tensor) -> None:
        pair = [factor.detach() for factor in self.factors()]
        up, down = (factor.to(gradient.dtype) for factor in pair)
        made = self._products(given.to(gradient.dtype), gradient, up, down)
        of_up, of_down = (one.to(factor.dtype) for one, factor in zip(made, pair, strict=True))
        self.found = (of_up, of_down) if self.found is None else (self.found[0] + of_up, self.found[1] + of_down)

    def _products(self, given: Tensor, gradient: Tensor, up: Tensor, down: Tensor) -> Pair:
        """``dL/dU (C_out, r)`` and ``dL/dD (r, d)``."""
        if isinstance(self.module, nn.Linear):
            inputs = given.reshape(-1, given.shape[-1])
            outputs = gradient.reshape(-1, gradient.shape[-1])[:, self.rows]
            if not (inputs.is_cpu and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
                return outputs.T @ (inputs @ down.T), (outputs @ up).T @ inputs
            given, gradient = _as_picture(inputs), _as_picture(outputs)  # oneDNN's convolutions are faster than MKL
            kernel, place = down[:, :, None, None], PLAIN
        else:
            gradient = gradient[:, self.rows]
            kernel = down.reshape(-1, *self.module.weight.shape[1:])
            place = self.module.stride, self.module.padding, self.module.dilation
        inner = functional.conv2d(given, kernel, None, *place)
        thin = functional.conv2d(gradient, up.T[:, :, None, None])
        of_up = conv2d_weight(inner, [*up.shape, 1, 1], gradient)  # type: ignore[no-untyped-call]
        of_down = conv2d_weight(given, list(kernel.shape), thin, *place)  # type: ignore[no-untyped-call]
        return of_up.reshape(up.shape), of_down.reshape(down.shape)

    @torch.no_grad()
    def judge(self) -> None:
        """End the trial, if the weight's gradient says anything, for better or worse."""
        gradient = self.live.grad
        if gradient is None:
            return
        up, down = (factor.detach() for factor in self.factors())
        whole = gradient.reshape(len(up), -1).to(up.dtype)
        wanted = (whole @ down.T, up.T @ whole)
        size = wanted[0].square().sum() + wanted[1].square().sum()
        if not size or not size.isfinite():  # with fp16 the first steps may overflow
            return
        if self.found is None:
            self.trusted = False
        else:
            off = sum((one - other).square().sum() for one, other in zip(self.found, wanted, strict=True))
            self.trusted = bool(off <= TOLERANCE**2 * size)
        if not self.trusted:
            self.close()

    @torch.enable_grad()
    def pull_back(self) -> bool:
        """Pass on what was found to the factors. Returns False if that has to be done the long way."""
        found, self.found = self.found, None
        if self.trusted is False:
            return False
        if found is not None:
            torch.autograd.backward(self.factors(), found)
        return found is not None or self.trusted is True


def _as_picture(rows: Tensor) -> Tensor:
    """Rows ``(N, C)`` as a picture ``(1, C, 1, N)`` in the same memory, of which channels come last."""
    return rows[None, None].permute(0, 3, 1, 2)


def shortcut(model: nn.Module, live: Live, factors: Callable[[], Pair]) -> Shortcut | None:
    """The shortcut of a weight's factors; None if there is none, or it would be none.

    There is none where several processes train: they average the gradients of weights.
    """
    module = model.get_submodule(tensor_of(live.name).rpartition(".")[0])
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if several or not _computes_products(module) or module.weight is not live.owner:
        return None
    rank, rows, columns = len(factors()[1]), len(live.base), prod(live.base.shape[1:])
    return Shortcut(module, live, factors) if 2 * rank * (rows + columns) <= CHEAPER * rows * columns else None


def _computes_products(module: nn.Module) -> TypeGuard[nn.Conv2d | nn.Linear]:
    """Whether a layer computes what a shortcut takes it to, and not something of its own."""
    if isinstance(module, nn.Conv2d):
        plain = module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return plain and type(module).forward is nn.Conv2d.forward
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
