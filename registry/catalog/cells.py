"""Types of columns whose values are held against what belongs there when they are read.

SQLite keeps any text in any column, and JSON is checked by no database for what is in it. A value that is something
else raises ValueError here; ``Catalog`` then looks for its place, see ``damage``.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Double, Integer
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from ..records import InputConfig


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC, on databases that keep the zone and on those that drop it."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


def _whole(value: object) -> Any:
    if value is not None and type(value) is not int:
        raise ValueError(f"{value!r} is not an integer")
    return value


def _real(value: object) -> Any:
    if value is not None and type(value) not in (float, int):
        raise ValueError(f"{value!r} is not a number")
    return value


class Real(Double[float]):
    """A number, also on SQLite."""

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[object], Any] | None:
        return _real if dialect.name == "sqlite" else None


class Whole(Integer):
    """An integer, also on SQLite."""

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[object], Any] | None:
        return _whole if dialect.name == "sqlite" else None


class LargeWhole(BigInteger):
    """An integer of 64 bits, also on SQLite."""

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[object], Any] | None:
        return _whole if dialect.name == "sqlite" else None


class Checked(TypeDecorator[Any]):
    """JSON whose content is checked; nothing passes, as an outer join leaves it."""

    impl = JSON
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        if value is not None:
            self.check(value)
        return value

    def check(self, value: Any) -> None:
        """Raises ValueError for what does not belong into the column."""
        raise NotImplementedError


class JsonObject(Checked):
    """JSON that is an object."""

    cache_ok = True

    def check(self, value: Any) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{_short(value)} is not a JSON object")


class JsonMetrics(JsonObject):
    """JSON that is an object of numbers."""

    cache_ok = True

    def check(self, value: Any) -> None:
        super().check(value)
        for name, number in value.items():
            if not isinstance(number, int | float):
                raise ValueError(f"{name} is {_short(number)}, not a number")


class JsonSettings(JsonObject):
    """JSON that is an object of a run's settings, of which listings show a few."""

    cache_ok = True

    def check(self, value: Any) -> None:
        super().check(value)
        for name, kind in (("method", str), ("seed", int), ("epochs", int)):
            if not isinstance(value.get(name, kind()), kind):
                raise ValueError(f"{name} is {_short(value[name])}, not of type {kind.__name__}")


class JsonInput(Checked):
    """JSON that is an ``InputConfig``."""

    cache_ok = True

    def check(self, value: Any) -> None:
        try:
            InputConfig.from_json(value)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{_short(value)} does not say how images are prepared: {error}") from error


class JsonNames(Checked):
    """JSON that is a list of strings."""

    cache_ok = True

    def check(self, value: Any) -> None:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise ValueError(f"{_short(value)} is not a list of strings")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
