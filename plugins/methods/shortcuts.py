"""Gradients of low-rank factors without the gradient of the weight.

A layer's backward pass makes ``G = dL/dW``, which costs what the forward pass costs. With ``W = W0 + U D`` it is only
needed for ``dL/dU = G D^T`` and ``dL/dD = U^T G``, and these follow from the layer's inputs and the gradients of its
outputs by products of the rank's width. The forward pass stays the model's own, with ``W`` in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TypeGuard

import torch
from torch import Tensor, nn

from ..architectures.pieces import tensor_of
from . import Live
from .thin import Pair, Seen

CHEAPER = 0.5  # what a shortcut may cost, in multiplications, against the gradient of the weight
TOLERANCE = 0.05  # how far it may be from the long way, against the size of the gradient


class Shortcut:
    """The gradients of one weight's factors, collected while the model's backward pass runs.

    It is on trial at first: the weight has its gradient as well, and the two are held against each other. They differ
    where a model uses the weight otherwise than by calling the layer that owns it.

    Args:
        module: a linear layer or a convolution that computes as torch's do.
        live: its weight, or rows of it.
        factors: gives ``(C_out, r)`` and ``(r, d)`` as they are now.
        turn: counts steps, if a quarter of the positions will do where there are plenty; None for all of them.

    Attributes:
        trusted: whether the weight needs no gradient any more; None on trial.
    """

    def __init__(
        self,
        module: nn.Conv2d | nn.Linear,
        live: Live,
        factors: Callable[[], Pair],
        turn: Callable[[], int] | None = None,
    ) -> None:
        self.module = module
        self.live = live
        self.factors = factors
        self.rows = slice(None) if live.rows is None else live.rows
        self.trusted: bool | None = None
        self.turn = turn
        self.found: Pair | None = None
        self.tried: Pair | None = None  # on trial: of all positions
        self._handle = module.register_forward_hook(self._listen)

    def close(self) -> None:
        """Leave the module as it was."""
        self._handle.remove()

    def _listen(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad and len(inputs) == 1 and inputs[0].requires_grad:
            given = [inputs[0].detach()]  # let go as soon as it is used: a hook outlives the backward pass
            output.register_hook(lambda gradient: self._learn(given.pop(), gradient))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _learn(self, given: Tensor, gradient: Tensor) -> None:
        seen = Seen.of(self.module, given.to(gradient.dtype), gradient, self.rows)
        some = seen if self.turn is None or not seen.is_plenty else seen.quarter(self.turn())
        made = some.products(*self.factors())
        self.found = _sum(self.found, made)
        if self.trusted is None:
            self.tried = _sum(self.tried, made if some is seen else seen.products(*self.factors()))

    @torch.no_grad()
    def judge(self) -> None:
        """End the trial, if the weight's gradient says anything, for better or worse."""
        tried, self.tried = self.tried, None
        gradient = self.live.grad
        if gradient is None:
            return
        up, down = (factor.detach() for factor in self.factors())
        whole = gradient.reshape(len(up), -1).to(up.dtype)
        wanted = (whole @ down.T, up.T @ whole)
        size = wanted[0].square().sum() + wanted[1].square().sum()
        if not size or not size.isfinite():  # with fp16 the first steps may overflow
            return
        if tried is None:
            self.trusted = False
        else:
            off = sum((one - other).square().sum() for one, other in zip(tried, wanted, strict=True))
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


def _sum(one: Pair | None, other: Pair) -> Pair:
    return other if one is None else (one[0] + other[0], one[1] + other[1])


def shortcut(
    model: nn.Module, live: Live, factors: Callable[[], Pair], turn: Callable[[], int] | None = None
) -> Shortcut | None:
    """The shortcut of a weight's factors, as for ``Shortcut``; None if there is none, or it would be none.

    There is none where several processes train: they average the gradients of weights.
    """
    module = model.get_submodule(tensor_of(live.name).rpartition(".")[0])
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if several or not _computes_products(module) or module.weight is not live.owner:
        return None
    rank, rows, columns = len(factors()[1]), len(live.base), prod(live.base.shape[1:])
    return Shortcut(module, live, factors, turn) if 2 * rank * (rows + columns) <= CHEAPER * rows * columns else None


def _computes_products(module: nn.Module) -> TypeGuard[nn.Conv2d | nn.Linear]:
    """Whether a layer computes what a shortcut takes it to, and not something of its own."""
    if isinstance(module, nn.Conv2d):
        plain = module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return plain and type(module).forward is nn.Conv2d.forward
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
