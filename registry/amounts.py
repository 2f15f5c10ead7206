"""Amounts as people write them: ``2GB``, ``1.5MiB``, ``10M``, ``5%``."""

from __future__ import annotations

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def amount(text: str, suffix: str = "B") -> int:
    """The number that ``text`` stands for.

    Args:
        text: a number and a unit: ``k``, ``M``, ``G``, ``T`` for powers of 1000, ``Ki``, ... for powers of 1024.
        suffix: what may follow or replace the unit; ``B`` for bytes, empty for a plain count.

    Raises:
        ValueError: if it is no amount.
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
        raise ValueError(f"{text!r} is no amount") from error


def share(text: str) -> float:
    """The share of 1 that ``0.005`` or ``0.5%`` stands for. Raises ValueError if it is none."""
    plain = text.strip()
    return float(plain.removesuffix("%")) / (100 if plain.endswith("%") else 1)
