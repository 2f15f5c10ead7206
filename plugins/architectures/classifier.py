"""Where a model has its classifiers: what every task has for itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .modules import matrices

if TYPE_CHECKING:
    from torch import nn


def classifier_paths(model: nn.Module) -> tuple[str, ...]:
    """Paths of the modules that end in logits, as timm's configuration of the model names them.

    ``get_classifier`` may know of others: a second head that the configuration forgets, or that of a model without
    one. Of these, the modules with matrices count; a norm before them is a norm like any other.
    """
    config = getattr(model, "pretrained_cfg", None) or {}
    names = config.get("classifier") or ()
    named = (names,) if isinstance(names, str) else tuple(names)
    forgotten = [path for path in _asked(model) if not any(is_inside(name, (path,)) for name in named)]
    return (
        *named,
        *(path for path, module in model.named_modules() if is_inside(path, forgotten) and matrices(module)),
    )


def is_inside(path: str, others: Iterable[str]) -> bool:
    """Whether a module or tensor is at one of the other paths, or below it."""
    return any(path == other or path.startswith(f"{other}.") for other in others)


def _asked(model: nn.Module) -> list[str]:
    """Paths of the one or more modules that the model's own ``get_classifier`` returns, if it has that."""
    get: Any = getattr(model, "get_classifier", tuple)
    answer = get()
    modules = answer if isinstance(answer, tuple | list) else (answer,)
    return [path for path, module in model.named_modules() if any(module is candidate for candidate in modules)]
