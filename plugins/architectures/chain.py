"""Modules one after another: what stages are made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING

from . import Stage

if TYPE_CHECKING:
    from torch import Tensor, nn


def chain(*steps: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function that hands a tensor from step to step."""
    return lambda tensor: reduce(lambda given, step: step(given), steps, tensor)


def active(*stages: Stage) -> tuple[Stage, ...]:
    """These stages, without those that hand on what they get: a model that pools first has no norm before that."""
    from torch import nn

    return tuple(stage for stage in stages if not isinstance(stage.run, nn.Identity))


def is_overridden(model: nn.Module, known: type[nn.Module]) -> bool:
    """Whether the model's class has a forward pass other than that of ``known``, whose stages cannot be vouched for."""
    methods = ("forward", "forward_features")
    return any(getattr(type(model), method) is not getattr(known, method) for method in methods)
