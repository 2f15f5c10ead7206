"""What a task may store: ``--budget`` as the catalog keeps it, in bytes or parameters."""

from __future__ import annotations

from dataclasses import dataclass

from ..units import amount, number, share, size
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
    """The parts of a budget, none for an empty one; parts that cannot be read are left out.

    ``training.budget`` reads the same texts for training, but needs torch.

    Args:
        budget: the setting, such as ``5%,2MB``.
        backbone_params: of the base, which percentages refer to.
    """
    found = []
    for text in (part.strip() for part in budget.split(",")):
        try:
            if text.endswith("%"):
                found.append(TaskLimit(text, FLOAT * backbone_params * share(text), in_bytes=True, whole=False))
            elif text.lower().endswith("b"):
                found.append(TaskLimit(text, amount(text), in_bytes=True, whole=True))
            else:
                found.append(TaskLimit(text, amount(text, ""), in_bytes=False, whole=True))
        except ValueError:
            continue
    return tuple(found)
