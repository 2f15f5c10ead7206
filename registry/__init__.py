"""The registry's face: ``Registry``, what it returns (``records``) and what it raises (``errors``)."""

from typing import TYPE_CHECKING, Any

from .errors import TapsError

if TYPE_CHECKING:
    from .registry import Registry as Registry

__all__ = ["Registry", "TapsError"]


def __getattr__(name: str) -> Any:
    """Import SQLAlchemy and the rest when a registry is wanted; ``--help`` wants none."""
    if name == "Registry":
        from .registry import Registry

        return Registry
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
