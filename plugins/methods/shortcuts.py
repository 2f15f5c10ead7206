"""Gradients without the gradient of the weight, and of the weight itself from a quarter of what its layer has seen.

A layer's backward pass makes ``G = dL/dW``, which costs what the forward pass costs. With ``W = W0 + U D`` it is only
needed for ``dL/dU = G D^T`` and ``dL/dD = U^T G``, and these follow from the layer's inputs and the gradients of its
outputs by products of the rank's width. Where the weight trains as it is, every fourth position of large pictures tells
much the same. Biases of linear layers have their sum over all of them, in half of autograd's time on a CPU. The
forward pass stays the model's own, with ``W`` in its place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from math import prod

import torch
from torch import Tensor, nn

from ..architectures.pieces import tensor_of
from . import Live
from .thin import Pair, Seen, Tokens

CHEAPER = 0.5  # what a shortcut may cost, in multiplications, against the gradient of the weight
TOLERANCE = 0.05  # how far it may be from the long way, against the size of the gradient

Gradients = tuple[Tensor, ...]
Turn = Callable[[], int]


class Shortcut(ABC):
    """What is wanted of the gradient of one parameter, collected while the model's backward pass runs.

    It is on trial at first: the parameter has its gradient as well, and the two are held against each other. They
    differ where a model uses the parameter otherwise than by calling the layer that owns it.

    Args:
        module: a linear layer or a convolution that computes as torch's do.
        live: its weight, or rows of it, or its bias.
        turn: counts steps, if a sample of the positions will do where there are plenty; None for all of them.
        tokens: what the model makes of a picture, if its patches are positions, too.

    Attributes:
        trusted: whether the parameter needs no gradient of autograd any more; None on trial.
        thinned: whether a sample of the positions had to do.
    """

    def __init__(
        self, module: nn.Conv2d | nn.Linear, live: Live, turn: Turn | None = None, tokens: Tokens | None = None
    ) -> None:
        self.module = module
        self.live = live
        self.rows = slice(None) if live.rows is None else live.rows
        self.trusted: bool | None = None
        self.thinned = False
        self.turn = turn
        self.tokens = tokens
        self.found: Gradients | None = None
        self.tried: Gradients | None = None  # on trial: of all positions
        self._handle = module.register_forward_hook(self._listen)

    @abstractmethod
    def _of(self, seen: Seen) -> Gradients:
        """What is wanted, of one call of the layer."""

    @abstractmethod
    def _of_whole(self, gradient: Tensor) -> Gradients:
        """The same, from the parameter's gradient."""

    @abstractmethod
    def _pass_on(self, found: Gradients) -> None:
        """Put it where the optimiser finds it."""

    def _saves(self) -> bool:
        """Whether it is less work than the long way."""
        return True

    def close(self) -> None:
        """Leave the module as it was."""
        self._handle.remove()

    def _listen(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad and len(inputs) == 1 and self._is_reached(inputs[0]):
            given = [inputs[0].detach()]  # let go as soon as it is used: a hook outlives the backward pass
            output.register_hook(lambda gradient: self._learn(given.pop(), gradient))  # type: ignore[no-untyped-call]

    def _is_reached(self, given: Tensor) -> bool:
        """Whether gradients come to the outputs even where the parameter asks for none."""
        return given.requires_grad or (self.module.bias is not None and self.module.bias.requires_grad)

    @torch.no_grad()
    def _learn(self, given: Tensor, gradient: Tensor) -> None:
        seen = Seen.of(self.module, given, gradient, self.rows, self.tokens)
        parts = (seen,) if self.turn is None else seen.sample(self.turn())
        self.thinned |= parts[0] is not seen
        made = _sum(*map(self._of, parts))
        self.found = _sum(self.found, made)
        if self.trusted is None:
            self.tried = _sum(self.tried, made if parts[0] is seen else self._of(seen))

    @torch.no_grad()
    def judge(self) -> None:
        """End the trial, if there is one and the parameter's gradient says anything, for better or worse."""
        tried, self.tried = self.tried, None
        gradient = self.live.grad
        if self.trusted is not None or gradient is None:
            return
        wanted = self._of_whole(gradient)
        size = torch.stack([one.square().sum() for one in wanted]).sum()
        if not size or not size.isfinite():  # with fp16 the first steps may overflow
            return
        if tried is None or not self._saves():
            self.trusted = False
        else:
            off = sum((one - other).square().sum() for one, other in zip(tried, wanted, strict=True))
            self.trusted = bool(off <= TOLERANCE**2 * size)
        if not self.trusted:
            self.close()

    @torch.enable_grad()
    def pull_back(self) -> bool:
        """Pass on what was found. Returns False if that has to be done the long way."""
        found, self.found = self.found, None
        if self.trusted is False:
            return False
        if found is not None:
            self._pass_on(found)
        return found is not None or self.trusted is True


class OfFactors(Shortcut):
    """The gradients of low-rank factors.

    Args:
        module: as for ``Shortcut``, as are live, turn and tokens.
        factors: gives ``(C_out, r)`` and ``(r, d)`` as they are now.
    """

    def __init__(
        self,
        module: nn.Conv2d | nn.Linear,
        live: Live,
        factors: Callable[[], Pair],
        turn: Turn | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        super().__init__(module, live, turn, tokens)
        self.factors = factors

    def _of(self, seen: Seen) -> Gradients:
        return seen.products(*self.factors())

    def _of_whole(self, gradient: Tensor) -> Gradients:
        up, down = (factor.detach() for factor in self.factors())
        whole = gradient.reshape(len(up), -1).to(up.dtype)
        return whole @ down.T, up.T @ whole

    def _pass_on(self, found: Gradients) -> None:
        torch.autograd.backward(self.factors(), found)


class OfWeight(Shortcut):
    """The gradient of a whole weight, from a quarter of the positions of large pictures."""

    def _of(self, seen: Seen) -> Gradients:
        return (seen.product(self.live.owner),)

    def _of_whole(self, gradient: Tensor) -> Gradients:
        return (gradient,)

    def _pass_on(self, found: Gradients) -> None:
        weight, (gradient,) = self.live.owner, found
        weight.grad = torch.empty_like(weight).copy_(gradient)  # in memory as optimisers take it to be

    def _saves(self) -> bool:
        return self.thinned


class OfBias(Shortcut):
    """The gradient of a linear layer's bias, of all positions."""

    def _is_reached(self, given: Tensor) -> bool:
        return given.requires_grad

    def _of(self, seen: Seen) -> Gradients:
        return (seen.total(),)

    def _of_whole(self, gradient: Tensor) -> Gradients:
        return (gradient,)

    def _pass_on(self, found: Gradients) -> None:
        (gradient,), bias = found, self.live.owner
        bias.grad = gradient.to(bias.dtype)


def gradients_are_averaged() -> bool:
    """Whether several processes train: of every parameter that was to train when they agreed on it, in each step."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _sum(*several: Gradients | None) -> Gradients:
    return tuple(map(_added, zip(*(one for one in several if one is not None), strict=True)))


def _added(tensors: tuple[Tensor, ...]) -> Tensor:
    first, *others = tensors
    return sum(others, first)


def of_factors(model: nn.Module, live: Live, factors: Callable[[], Pair], turn: Turn | None = None) -> OfFactors | None:
    """The shortcut of a weight's factors; None if there is none, or it would be none. See ``OfFactors``."""
    rank, rows, columns = len(factors()[1]), len(live.base), prod(live.base.shape[1:])
    if 2 * rank * (rows + columns) > CHEAPER * rows * columns or (module := _owner(model, live)) is None:
        return None
    return OfFactors(module, live, factors, turn, Tokens.of(model))


def of_weight(model: nn.Module, live: Live, turn: Turn) -> OfWeight | None:
    """The shortcut of a weight; None if there is none. Rows of one have none: the others need gradients, too."""
    module = _owner(model, live) if live.rows is None else None
    return OfWeight(module, live, turn) if module is not None else None


def of_biases(ways: Iterable[OfFactors]) -> tuple[OfBias, ...]:
    """The shortcuts of the biases that train beside these weights, one for each linear layer."""
    biases = {way.module: way.module.bias for way in ways if isinstance(way.module, nn.Linear)}
    return tuple(
        OfBias(module, Live("bias", bias)) for module, bias in biases.items() if bias is not None and bias.requires_grad
    )


def _owner(model: nn.Module, live: Live) -> nn.Conv2d | nn.Linear | None:
    """The layer that has this weight, if it computes what a shortcut takes it to, and not something of its own."""
    module = model.get_submodule(tensor_of(live.name).rpartition(".")[0])
    if gradients_are_averaged() or getattr(module, "weight", None) is not live.owner:
        return None
    if isinstance(module, nn.Conv2d):
        plain = module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return module if plain and type(module).forward is nn.Conv2d.forward else None
    return module if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward else None
