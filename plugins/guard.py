"""One guard around every call into a plugin: its mistake is one line that says whose it is.

The contracts derive from ``Guarded``. What a subclass defines of a contract's public methods is wrapped when the class
is made, so that no caller has to remember, and objects stay what they are: of their own class, with their own pickle.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, wraps
from types import FunctionType
from typing import Any, ClassVar

from .errors import PluginError, TapsError, first_line

# Raised wherever the process happens to be when a loader process dies: nobody's mistake here.
LOADER_DIED = "DataLoader worker"

_packages: dict[str, str] = {}  # by module, and by the packages above it that nobody else was in before


class Guarded:
    """Base of the contracts.

    Attributes:
        kind: what the contract is called in messages, such as ``method``.
        returns: names of the classes of which a method's result must be, by method, as ``module:Class``.
        blames: errors that a method raises, by its contract, for what it was given.
    """

    kind: ClassVar[str] = "plugin"
    returns: ClassVar[dict[str, str]] = {}
    blames: ClassVar[dict[str, tuple[type[Exception], ...]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in _contract(cls):
            owner = next(parent for parent in cls.__mro__ if name in vars(parent))
            if owner is not cls and issubclass(owner, Guarded):
                continue  # the contract's own, or wrapped when that class was made
            member = vars(owner)[name]
            if isinstance(member, staticmethod):
                member = _of_no_object(member.__func__)
            if isinstance(member, FunctionType) and not getattr(member, "__isabstractmethod__", False):
                setattr(cls, name, _guarded(member))


def _contract(cls: type[Guarded]) -> frozenset[str]:
    """The public methods of the contract that a class fulfils: those of its ancestors that derive from ``Guarded``."""
    return frozenset(
        name
        for parent in cls.__mro__[1:]
        if issubclass(parent, Guarded)
        for name, member in vars(parent).items()
        if callable(member) and not name.startswith("_")
    )


def _of_no_object(function: Callable[..., Any]) -> FunctionType:
    @wraps(function)
    def call(self: object, *arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    assert isinstance(call, FunctionType)
    return call


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    name = method.__name__

    @wraps(method)
    def call(self: Guarded, *arguments: Any, **named: Any) -> Any:
        try:
            result = method(self, *arguments, **named)
        except (TapsError, MemoryError):
            raise
        except Exception as error:
            if _is_elsewhere(self, name, error):
                raise
            raise PluginError(
                f"{described(self)} failed in {name}: {type(error).__name__}: {first_line(error)}. "
                "That is the plugin's mistake, not yours; --verbose shows where it is."
            ) from error
        wanted = self.returns.get(name)
        if wanted and not isinstance(result, _class(wanted)):
            raise PluginError(
                f"{described(self)} returned {type(result).__name__} from {name}, where a "
                f"{wanted.partition(':')[2]} belongs."
            )
        return result

    return call


def _is_elsewhere(plugin: Guarded, method: str, error: Exception) -> bool:
    """Whether an error that passes through a plugin is not of its making."""
    if isinstance(error, plugin.blames.get(method, ())):
        return True
    return isinstance(error, RuntimeError) and (type(error).__name__ == "OutOfMemoryError" or LOADER_DIED in str(error))


def described(plugin: object) -> str:
    """Kind, name and package of a plugin's object, such as ``The method 'taps' of taps-registry 0.1.0``."""
    kind = getattr(plugin, "kind", "plugin")
    name = getattr(plugin, "name", "") or type(plugin).__name__
    return f"The {kind} {name!r} of {package_of(type(plugin))}"


def remember(plugin: object, package: str) -> None:
    """Let messages know which package brings the module of a plugin's object, such as ``taps-registry 0.1.0``."""
    module, *above = _and_above(type(plugin).__module__)
    _packages[module] = package
    for name in above:
        _packages.setdefault(name, package)


def package_of(cls: type) -> str:
    """The distribution that a class comes from, with its version; its module if no distribution has that."""
    known = (_packages[name] for name in _and_above(cls.__module__) if name in _packages)
    return next(known, None) or _package(cls.__module__)


def _and_above(module: str) -> list[str]:
    """A module and the packages it is in, from inside outwards."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


@cache
def _package(module: str) -> str:
    from importlib.metadata import packages_distributions, version

    names = packages_distributions().get(module.partition(".")[0], ())
    if names:
        return f"{names[0]} {version(names[0])}"
    file = getattr(sys.modules.get(module), "__file__", None)
    return f"the module {module}" + (f" ({file})" if file else "")


@cache
def _class(name: str) -> type:
    from importlib import import_module

    module, _, class_name = name.partition(":")
    cls: type = getattr(import_module(module, __package__), class_name)
    return cls
