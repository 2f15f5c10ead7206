"""Options of the command line, made of what dataclasses declare."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import click

from ..plugins.options import Option, flag, options_of
from ..registry.units import amount, share

Decorator = Callable[[Any], Any]


class Amount(click.ParamType[int]):
    """A number with a unit: ``2GB``, ``1.5MiB``, ``10M``."""

    name = "amount"

    def __init__(self, what: str) -> None:
        """``what`` is ``bytes`` or ``params``."""
        self.suffix = "B" if what == "bytes" else ""
        self.example = "2GB" if what == "bytes" else "10M"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return amount(str(value), self.suffix)
        except ValueError:
            self.fail(f"{value!r} is not a valid amount; example: {self.example}", param, ctx)


class Share(click.ParamType[float]):
    """A fraction, or a percentage: ``0.005``, ``0.5%``."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return share(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a valid fraction; examples: 0.005, 0.5%", param, ctx)


_UNITS = {"bytes": Amount("bytes"), "share": Share()}


def declared(*classes: type, names: Iterable[str] = (), **other: Any) -> Decorator:
    """An option for each that these dataclasses declare. Its value is None unless it is given.

    Args:
        classes: of several that declare a name the first counts, with the choices of all.
        names: those wanted; all if empty.
        other: attributes of ``Option`` to be other than declared.
    """
    known: dict[str, Option] = {}
    for cls in classes:
        for name, option in options_of(cls).items():
            first = known.setdefault(name, option)
            more = [choice for choice in option.choices if choice not in first.choices]
            known[name] = replace(first, choices=(*first.choices, *more))
    wanted = list(names) or list(known)

    def decorate(command: Any) -> Any:
        for name in reversed(wanted):
            command = _option(name, replace(known[name], **other))(command)
        return command

    return decorate


def _option(name: str, known: Option) -> Decorator:
    if known.type is bool:
        return click.option(flag(name), name, is_flag=True, default=None, help=known.help)
    shown = f"{known.help} Default: {known.default}." if known.default not in (None, "") else known.help
    return click.option(flag(name), name, type=_type(known), metavar=known.metavar or None, help=shown)


def _type(known: Option) -> Any:
    if known.unit:
        return _UNITS[known.unit]
    if known.choices:
        return click.Choice(list(known.choices))
    return click.IntRange(min=int(known.least)) if known.type is int and known.least is not None else known.type
