"""What a task may store: ``--budget`` as the catalog keeps it, in bytes or parameters."""

from __future__ import annotations

from dataclasses import dataclass

from ..amounts import parse
from ..errors import SettingsError
from ..units import number, size
from .shares import FLOAT


@dataclass(frozen=True)
class TaskLimit:
    """One part of a task's own budget.

    Attributes:
        text: as the user wrote it.
        amount: in bytes or parameters.
        in_bytes: whether it is in bytes.
        whole: whether the head counts as well, and for bytes all of the file; otherwise only weights and norms count.
    """

    text: str
    amount: float
    in_bytes: bool
    whole: bool

    @property
    def label(self) -> str:
        """What it allows, for a reader who does not know what a percentage is a percentage of."""
        if not self.whole:
            return f"{self.text}: {size(self.amount)} of weights and norms"
        return f"file of {size(self.amount)}" if self.in_bytes else f"{number(self.amount)} parameters"


def task_limits(budget: str, backbone_params: int) -> tuple[TaskLimit, ...]:
    """The parts of a budget such as ``5%,2MB``, percentages being of the base's backbone; none if it cannot be read."""
    try:
        parts = parse(budget)
    except SettingsError:  # of a version that knows others
        return ()
    each = {"%": FLOAT * backbone_params}
    return tuple(
        TaskLimit(part.text, part.value * each.get(part.unit, 1), part.unit != "parameters", part.unit != "%")
        for part in parts
        if part.unit != "remaining"
    )
