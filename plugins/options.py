"""Options, declared once: as fields of a dataclass with help, default and range.

The command line, its documentation and every check follow from the declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from math import isfinite
from types import NoneType
from typing import Any, Literal, Self, get_args, get_type_hints

OnResume = Literal["fixed", "free", "retrains"]
_KEY = "taps_registry"
_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its name and default.

    Attributes:
        help: one sentence for the command line; the default is added to it.
        metavar: what stands for a value there.
        least: smallest value.
        above: value that must be exceeded.
        most: largest value.
        choices: all values that there are.
        on_resume: whether a resumed run keeps the value (``fixed``), may have another (``free``), or trains again from
            its first epoch under another (``retrains``).
        without_budget: whether it means nothing within ``--budget``.
        unit: ``bytes`` or ``share`` for numbers that the command line takes as ``2GB`` or ``5%``.
        default: if none is given; None for one that the code finds.
        type: of the values: int, float, str or bool.
    """

    help: str
    metavar: str = ""
    least: float | None = None
    above: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    on_resume: OnResume = "fixed"
    without_budget: bool = False
    unit: str = ""
    default: Any = None
    type: type = str

    def fault(self, label: str, value: Any) -> str:
        """What is wrong with a value, for the user, who knows the option by this label; empty if nothing is."""
        if value is None and self.default is None:
            return ""
        if not _fits(value, self.type):
            return f"{label} must be {_KINDS.get(self.type, self.type.__name__)}, got {value!r}."
        if self.choices and value not in self.choices:
            return f"{label} must be one of {', '.join(self.choices)}, got {value!r}."
        if self.type not in (int, float):
            return ""
        within = (
            _is_finite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
        )
        return "" if within else f"{label} must be {self._range()}, got {value}."

    def _range(self) -> str:
        """The numbers that there are, in words."""
        bounds = [("at least", self.least), ("greater than", self.above), ("at most", self.most)]
        words = " and ".join(f"{text} {bound}" for text, bound in bounds if bound is not None)
        if self.type is int or self.above is not None:
            return words
        return "a finite number" + (f" of {words}" if words else "")


def option(default: Any, help: str, **known: Any) -> Any:
    """The default of a dataclass's field that is an option.

    Args:
        default: value if none is given; None for one that the code finds.
        help: one sentence for the command line.
        known: further attributes of ``Option``.
    """
    return field(default=default, metadata={_KEY: Option(help, default=default, **known)})


def options_of(cls: type) -> Mapping[str, Option]:
    """The options that a dataclass declares, by name, in order."""
    hints = get_type_hints(cls)
    known = {}
    for declared in fields(cls):
        if _KEY in declared.metadata:
            types = [kind for kind in get_args(hints[declared.name]) or (hints[declared.name],) if kind is not NoneType]
            known[declared.name] = replace(declared.metadata[_KEY], type=types[0])
    return known


def check_options(values: Any, label: Callable[[str], str] | None = None) -> None:
    """Raise ValueError, with a text for the user, for the first option whose value makes no sense.

    Args:
        values: a dataclass.
        label: what a user calls an option; by default ``flag``.
    """
    for name, declared in options_of(type(values)).items():
        if fault := declared.fault((label or flag)(name), getattr(values, name)):
            raise ValueError(fault)


def flag(name: str) -> str:
    """The command line's name of an option."""
    return "--method-arg" if name == "arguments" else "--" + name.replace("_", "-")


def mistakes(cls: type) -> list[str]:
    """What is wrong with a dataclass of options, if anything is."""
    if not (isinstance(cls, type) and issubclass(cls, Options)):
        return [f"its options are {cls!r}, not a class that derives from Options"]
    if any(isinstance(value, Field) for value in vars(cls).values()):
        return [f"{cls.__name__} lacks @dataclass(frozen=True)"]
    known = options_of(cls)
    wrong = [f"{declared.name} is declared without option()" for declared in fields(cls) if declared.name not in known]
    for name, declared in known.items():
        if not declared.help.strip() or "\n" in declared.help:
            wrong.append(f"{name} needs a help of one line")
        if declared.on_resume not in get_args(OnResume):
            wrong.append(f"on_resume of {name} must be one of {', '.join(get_args(OnResume))}")
        if fault := declared.fault(name, declared.default):
            wrong.append(f"the default of {fault.rstrip('.')}")
    return wrong


def _is_finite(value: float) -> bool:
    try:
        return isfinite(value)
    except OverflowError:  # a whole number too large for any float
        return False


def _fits(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


@dataclass(frozen=True)
class Options:
    """Options of a method, as it has them unless it declares others: none.

    A method's own are a frozen dataclass that derives from this, with fields made by ``option`` ::

        @dataclass(frozen=True)
        class MyOptions(Options):
            depth: int = option(2, "Blocks that train.", least=1)
    """

    @classmethod
    def label(cls, name: str) -> str:
        """What a user calls an option."""
        return f"--method-arg {name}"

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Options with these values, checked.

        Raises:
            ValueError: for a name that is not among them, or a value that makes no sense.
        """
        if unknown := sorted(set(given) - set(options_of(cls))):
            raise ValueError(f"there is no option {', '.join(unknown)}")
        options = cls(**given)
        check_options(options, cls.label)
        return options
