"""The machine: its devices and precisions through accelerate, and its random states."""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ..errors import SettingsError, first_line
from .settings import PRECISIONS


def find_device(device: str) -> torch.device:
    """The device of this name; ``auto`` for the machine's accelerator, or its CPU if it has none.

    Raises:
        SettingsError: for a device that this machine does not have.
    """
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"--device {device} cannot be used here: {first_line(error)}") from error
    return chosen


def make_accelerator(device: str, precision: str) -> Any:
    """accelerate's view of the machine, for training: a process has one at a time.

    Raises:
        SettingsError: for a device or precision that this machine does not have.
    """
    wanted = find_device(device)
    if wanted.type == "cuda" and wanted.index is not None:
        torch.cuda.set_device(wanted)
    AcceleratorState._reset_state(reset_partial_state=True)  # else the process's first precision would be its last
    try:
        return Accelerator(
            cpu=wanted.type == "cpu",
            mixed_precision=PRECISIONS[precision],
        )
    except ValueError as error:
        raise SettingsError(f"--precision {precision} cannot be used on {device}: {error}") from error


def seed_everything(seed: int) -> None:
    """Set the random states that models and augmentations draw from."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
