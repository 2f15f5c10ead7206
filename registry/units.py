"""Numbers with their units: written short enough to read, and read as people write them."""

from __future__ import annotations

from collections.abc import Sequence

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def size(count: float) -> str:
    """Bytes in decimal units: 1.2 MB."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def number(count: float) -> str:
    """Parameters: 11.2 M."""
    return _scaled(count, ("", "k", "M", "G"))


def percent(part: float) -> str:
    """A share of 1 as per cent."""
    return f"{100 * part:.1f} %"


def counted(count: int, noun: str) -> str:
    """How many there are, for nouns with a regular plural: 1 image, 2 images."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _scaled(count: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if abs(count) < 1000:
            return f"{count:.0f} {unit}".rstrip() if unit == units[0] else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} {units[-1]}"


def amount(text: str, suffix: str = "B") -> int:
    """The number that ``text`` stands for: ``k``, ``M``, ``G``, ``T`` are powers of 1000, ``Ki``, ... powers of 1024.

    ``suffix`` is what may follow or replace the unit: ``B`` for bytes, empty for a plain count. Raises ValueError.
    """
    plain = text.strip().replace("_", "").replace(" ", "")
    units = {"": 1, suffix.lower(): 1}
    for power, letter in enumerate("kmgt", 1):
        units |= {letter: 1000**power, f"{letter}{suffix}".lower(): 1000**power}
        units |= {f"{letter}i": 1024**power, f"{letter}i{suffix}".lower(): 1024**power}
    digits = plain.rstrip(LETTERS)
    try:
        return round(float(digits) * units[plain[len(digits) :].lower()])
    except (ValueError, KeyError, OverflowError) as error:
        raise ValueError(f"{text!r} is not a valid amount") from error


def share(text: str) -> float:
    """The share of 1 that ``0.005`` or ``0.5%`` stands for. Raises ValueError if it is none."""
    plain = text.strip()
    return float(plain.removesuffix("%")) / (100 if plain.endswith("%") else 1)
