"""taps-registry: one pre-trained vision backbone, any number of tasks, each stored as what it changed.

>>> from taps_registry import Registry
>>> registry = Registry.open()                          # the nearest .taps/ upwards
>>> registry.cost().bases[0].total.multiple             # doctest: +SKIP
1.37
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .registry import Registry as Registry
    from .registry import TapsError as TapsError

__all__ = ["Registry", "TapsError", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the face only when it is asked for, so that ``import taps_registry`` stays free."""
    if name == "__version__":
        from importlib.metadata import version

        return version("taps-registry")
    if name in __all__:
        from . import registry

        return getattr(registry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
