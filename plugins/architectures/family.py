"""Families of models that are one class of timm's: knowing it, and its forward pass as a chain of stages."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import reduce
from typing import TYPE_CHECKING, Any

from . import Stage
from .generic import Generic

if TYPE_CHECKING:
    from torch import Tensor, nn


class Family(Generic):
    """The models of ``timm_class``, and of those below it."""

    fallback = False

    @abstractmethod
    def timm_class(self) -> Any:
        """The class, imported when it is asked for: timm takes seconds."""

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, self.timm_class())

    def stages(self, model: nn.Module) -> tuple[Stage, ...]:
        """Without those that hand on what they get: a model that pools first has no norm before that.

        Empty for a class with a forward pass of its own, whose stages cannot be vouched for.
        """
        from torch import nn

        known, own = self.timm_class(), type(model)
        methods = ("forward", "forward_features")
        if not isinstance(model, known) or any(getattr(own, name) is not getattr(known, name) for name in methods):
            return ()
        return tuple(stage for stage in self.parts(model) if not isinstance(stage.run, nn.Identity))

    @abstractmethod
    def parts(self, model: Any) -> Iterator[Stage]:
        """What ``stages`` are, of a model of this very class."""


def chain(*steps: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function that hands a tensor from step to step."""
    return lambda tensor: reduce(lambda given, step: step(given), steps, tensor)
