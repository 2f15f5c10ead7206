"""Numbers short enough to read, with their units."""

from __future__ import annotations

from collections.abc import Sequence


def size(count: float) -> str:
    """Bytes in decimal units: 1.2 MB."""
    return _scaled(count, 1000, ("B", "kB", "MB", "GB", "TB"))


def number(count: float) -> str:
    """Parameters: 11.2 M."""
    return _scaled(count, 1000, ("", "k", "M", "G"))


def percent(share: float) -> str:
    """A share of 1 as per cent."""
    return f"{100 * share:.1f} %"


def _scaled(count: float, step: int, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if abs(count) < step:
            return f"{count:.0f} {unit}".rstrip() if unit == units[0] else f"{count:.1f} {unit}"
        count /= step
    return f"{count:.1f} {units[-1]}"
