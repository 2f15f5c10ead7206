"""Which seeds there are."""

from __future__ import annotations

from .errors import SettingsError

SEEDS = 2**32  # as many as NumPy takes; torch takes more, and methods derive others from a run's


def check_seed(seed: int) -> None:
    """Raises SettingsError for what is no seed."""
    if not 0 <= seed < SEEDS:
        raise SettingsError(f"--seed must be at least 0 and less than {SEEDS}, got {seed}.")
