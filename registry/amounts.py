"""Amounts of a ``--budget``: what a person writes, read apart.

``5%`` is a share of the base: the task's weights and norms, in bytes as encoded, against the base's backbone in
float32. ``2MB`` is the size of the artifact's file, and ``500k`` a number of parameters; both with the head.
``remaining/3`` is a third of what the budgets of the base and of the registry have left. Several, with commas between
them, hold all.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import SettingsError
from .units import amount, share

REMAINING = "remaining/"


@dataclass(frozen=True)
class Amount:
    """One part of a budget: so many ``%`` of the base, ``bytes``, ``parameters``, or the ``remaining``'s fraction."""

    value: float
    unit: str
    text: str


def parse(text: str) -> tuple[Amount, ...]:
    """The parts of a budget. Raises SettingsError for what is none."""
    return tuple(_parse(part.strip(), text) for part in text.split(",")) if text else ()


def _parse(text: str, whole: str) -> Amount:
    try:
        if text.startswith(REMAINING):
            parsed = Amount(int(text.removeprefix(REMAINING)), "remaining", text)
        elif text.endswith("%"):
            parsed = Amount(share(text), "%", text)
        elif text.lower().endswith("b"):
            parsed = Amount(amount(text), "bytes", text)
        else:
            parsed = Amount(amount(text, ""), "parameters", text)
    except ValueError:
        parsed = Amount(0, "", text)
    if not 0 < parsed.value < float("inf"):
        raise SettingsError(
            f"--budget {whole!r} is not a valid budget. Examples: 5% (of the base), 2MB (the file), 500k (parameters), "
            "remaining/3 (of what the registry's budgets have left), 5%,2MB (both)."
        )
    return parsed
