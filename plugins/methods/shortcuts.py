"""Gradients without the gradient of the weight, and of the weight itself from a sample of what its layer has seen.

A layer's backward pass makes ``G = dL/dW``, which costs what the forward pass costs. With ``W = W0 + U D`` it is only
needed for ``dL/dU = G D^T`` and ``dL/dD = U^T G``, and these follow from the layer's inputs and the gradients of its
outputs by products of the rank's width; the gradient of a bias beside them comes with these. Where the weight trains as
it is, a sample of the positions of large feature maps tells much the same. The forward pass stays the model's own, with
``W`` in its place.

Only on CPUs is that a saving. A GPU makes a weight's gradient in less time than it takes to read what its layer has
seen twice more, and a step with many small products waits for them to be launched.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures.pieces import tensor_of
from . import Live
from .sampling import Sample, Tokens, sample
from .thin import Gradients, Pair, Piece, Seen, chained, sums_to_zero

CHEAPER = 0.5  # what a shortcut may cost, in multiplications, against the gradient of the weight
TOLERANCE = 0.05  # how far it may be from the long way, against the size of the gradient

Turn = Callable[[], int]


class Shortcut(ABC):
    """What is wanted of the gradient of a layer's weight, collected while the model's backward pass runs.

    It is on trial at first: the weight has its gradient as well, and the two are held against each other. They differ
    where a model uses the weight otherwise than by calling the layer that owns it.

    Args:
        module: a linear layer or a convolution that computes as torch's do.
        turn: counts steps, if a sample of the positions will do where there are plenty; None for all of them.
        tokens: what the model makes of an image, if its patches are positions, too.

    Attributes:
        trusted: whether the weight needs no gradient of autograd any more; None on trial.
        thinned: whether a sample of the positions had to do.
        balanced: whether gradients of the outputs sum to zero, as they do before batch norm; found out on trial.
    """

    def __init__(self, module: nn.Conv2d | nn.Linear, turn: Turn | None = None, tokens: Tokens | None = None) -> None:
        self.module = module
        self.trusted: bool | None = None
        self.thinned = False
        self.balanced = True
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
        """The same, from the weight's gradient."""

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
            given, thin = inputs[0].detach(), self.turn is not None and inputs[0].requires_grad
            part = self._sample(given, output) if thin and self.trusted else None
            kept = [given if part is None else part]  # let go as soon as it is used: a hook outlives the backward pass
            output.register_hook(lambda gradient: self._learn(gradient, kept.pop(), thin))  # type: ignore[no-untyped-call]

    def _sample(self, given: Tensor, output: Tensor) -> Sample | None:
        return None if self.turn is None else sample(self.module, given, output, self.turn(), self.tokens)

    def _is_reached(self, given: Tensor) -> bool:
        """Whether gradients come to the outputs even where the weight asks for none."""
        return given.requires_grad or (self.module.bias is not None and self.module.bias.requires_grad)

    @torch.no_grad()
    def _learn(self, gradient: Tensor, kept: Tensor | Sample, thin: bool) -> None:
        """Take in a call of the layer.

        Args:
            gradient: of its outputs.
            kept: inputs, or a sample of them.
            thin: whether a sample will do, as everywhere but in the model's first layer.
        """
        if isinstance(kept, Sample):
            self.found = _sum(self.found, self._of(kept.seen(gradient, self.balanced)))
            return
        made = self._of(Seen.of(self.module, kept, gradient))
        if self.trusted is None:
            self.tried = _sum(self.tried, made)
            if thin:
                self.balanced &= sums_to_zero(gradient, 1 if isinstance(self.module, nn.Conv2d) else -1)
            if thin and (part := self._sample(kept, gradient)) is not None:
                self.thinned, made = True, self._of(part.seen(gradient, self.balanced))
        self.found = _sum(self.found, made)

    @torch.no_grad()
    def judge(self) -> None:
        """End the trial, if there is one and the weight's gradient says anything, for better or worse."""
        tried, self.tried = self.tried, None
        gradient = self.module.weight.grad
        if self.trusted is not None or gradient is None:
            return
        wanted = self._of_whole(gradient)
        size = _size(wanted)
        if not size or not size.isfinite():  # with fp16 the first steps may overflow
            return
        self.trusted = tried is not None and self._saves() and self._agree(tried, wanted)
        if not self.trusted:
            self.close()

    def _agree(self, tried: Gradients, wanted: Gradients) -> bool:
        """Whether they are the same but for roundings."""
        off = _size(tuple(one - other for one, other in zip(tried, wanted, strict=True)))
        return bool(off <= TOLERANCE**2 * _size(wanted))

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
    """The gradients of low-rank factors of a weight, or of rows of it, and of the bias beside them.

    Convolutions keep their biases to themselves, but for patch embeddings.

    Args:
        module: as for ``Shortcut``, as are turn and tokens.
        factors: give ``(C_out, r)`` and ``(r, d)`` as they are now, by the rows that they are of.
        embeds: whether the layer is the patch embedding of a model's images, which need no gradient.

    Attributes:
        bias: that has its gradient here as well; None if it has not.
    """

    def __init__(
        self,
        module: nn.Conv2d | nn.Linear,
        factors: Sequence[tuple[slice, Callable[[], Pair]]],
        turn: Turn | None = None,
        tokens: Tokens | None = None,
        embeds: bool = False,
    ) -> None:
        super().__init__(module, turn, tokens)
        self.factors = factors
        self.embeds = embeds
        covered = sum(len(pair()[0]) for _, pair in factors) == len(module.weight)
        beside = module.bias if covered and (embeds or isinstance(module, nn.Linear)) else None
        self.bias = beside if beside is not None and beside.requires_grad else None

    def _listen(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self.embeds and self.trusted and torch.is_grad_enabled():
            output.requires_grad_()  # though neither images nor parameters ask for a gradient
        super()._listen(module, inputs, output)

    def _is_reached(self, given: Tensor) -> bool:
        if not given.requires_grad and not self.embeds:
            self.bias = None  # without its own gradient none would come here
        return super()._is_reached(given) or self.embeds

    def _of(self, seen: Seen) -> Gradients:
        return seen.products([Piece(rows, *pair()) for rows, pair in self.factors], self.bias is not None)

    def _of_whole(self, gradient: Tensor) -> Gradients:
        found: list[Tensor] = []
        for rows, pair in self.factors:
            found += chained(gradient[rows], pair())
            if self.bias is not None and self.bias.grad is not None:
                found.append(self.bias.grad[rows])
        return tuple(found)

    def _agree(self, tried: Gradients, wanted: Gradients) -> bool:
        """A bias that the model uses otherwise keeps its own gradient, whatever becomes of the weight's."""
        if self.bias is None:
            return super()._agree(tried, wanted)
        if not super()._agree(tried[2::3], wanted[2::3]):
            self.bias, self.found = None, self.found and _without_biases(self.found)
        return super()._agree(_without_biases(tried), _without_biases(wanted))

    def _pass_on(self, found: Gradients) -> None:
        factors = [factor for _, pair in self.factors for factor in pair()]
        with_bias = len(found) > len(factors)  # whose own gradient may have turned out to be needed since
        gradients = _without_biases(found) if with_bias else found
        pairs = zip(factors, gradients, strict=True)
        trained = [pair for pair in pairs if pair[0].requires_grad]  # one side may be frozen
        if trained:
            torch.autograd.backward([factor for factor, _ in trained], [gradient for _, gradient in trained])
        if self.bias is not None:
            self.bias.grad = torch.empty_like(self.bias)
            for (rows, _), gradient in zip(self.factors, found[2::3], strict=True):
                self.bias.grad[rows] = gradient


def _without_biases(found: Gradients) -> Gradients:
    return tuple(one for index, one in enumerate(found) if index % 3 < 2)


def _size(gradients: Gradients) -> Tensor:
    """The sum of all squares."""
    return torch.stack([one.square().sum() for one in gradients]).sum()


class OfWeight(Shortcut):
    """The gradient of a whole weight, from a sample of the positions of large feature maps."""

    def _of(self, seen: Seen) -> Gradients:
        return (seen.product(self.module.weight),)

    def _of_whole(self, gradient: Tensor) -> Gradients:
        return (gradient,)

    def _pass_on(self, found: Gradients) -> None:
        weight, (gradient,) = self.module.weight, found
        weight.grad = torch.empty_like(weight).copy_(gradient)  # in memory as optimisers take it to be

    def _saves(self) -> bool:
        return self.thinned


def pays_on(device: torch.device) -> bool:
    """Whether thin products there take less time than the gradient of a weight."""
    return device.type == "cpu"


def gradients_are_averaged() -> bool:
    """Whether several processes train: of every parameter that was to train when they agreed on it, in each step."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _sum(before: Gradients | None, more: Gradients) -> Gradients:
    return more if before is None else tuple(one + other for one, other in zip(before, more, strict=True))


def of_factors(
    model: nn.Module, products: Iterable[tuple[Live, Callable[[], Pair]]], turn: Turn | None = None
) -> dict[str, OfFactors]:
    """The shortcuts of weights' factors, by name; rows of one weight share theirs. Where one would save nothing, none.

    Args:
        model: that has the weights.
        products: weights or rows of one, and what gives their factors.
        turn: as for ``Shortcut``.
    """
    by_layer: dict[nn.Conv2d | nn.Linear, list[tuple[Live, Callable[[], Pair]]]] = {}
    for live, pair in products:
        rank, rows, columns = len(pair()[1]), len(live.base), prod(live.base.shape[1:])
        if 2 * rank * (rows + columns) <= CHEAPER * rows * columns and (module := _owner(model, live)) is not None:
            by_layer.setdefault(module, []).append((live, pair))
    tokens, patches, found = Tokens.of(model), _patch_embedding(model), {}
    for module, pieces in by_layer.items():
        rows_of = [(slice(None) if live.rows is None else live.rows, pair) for live, pair in pieces]
        way = OfFactors(module, rows_of, turn, tokens, embeds=module is patches)
        found.update({live.name: way for live, _ in pieces})
    return found


def of_weight(model: nn.Module, live: Live, turn: Turn) -> OfWeight | None:
    """The shortcut of a weight; None if none saves anything. Rows of one have none: the others need gradients, too."""
    module = _owner(model, live) if live.rows is None else None
    return OfWeight(module, turn) if module is not None else None


def _patch_embedding(model: nn.Module) -> nn.Module | None:
    """The layer that timm's transformers take images apart with, of which nothing is changed in place; or None."""
    from timm.layers import PatchEmbed

    embedding: Any = getattr(model, "patch_embed", None)
    return embedding.proj if type(embedding) is PatchEmbed else None


def _owner(model: nn.Module, live: Live) -> nn.Conv2d | nn.Linear | None:
    """The layer that has this weight, if it computes what a shortcut takes it to, and not something of its own."""
    module = model.get_submodule(tensor_of(live.name).rpartition(".")[0])
    if not pays_on(live.base.device) or gradients_are_averaged() or getattr(module, "weight", None) is not live.owner:
        return None
    if isinstance(module, nn.Conv2d):
        plain = module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return module if plain and type(module).forward is nn.Conv2d.forward else None
    return module if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward else None
