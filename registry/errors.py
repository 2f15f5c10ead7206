"""Every error that a user can act on, and what the command line exits with.

::

    TapsError                 1
    ├── SettingsError         2   an option that does not fit (click's own usage errors exit with 2 too)
    ├── HomeError             3   no registry here, or one where none was wanted
    ├── SchemaError           4   the catalog is older or newer than this version
    ├── NotFoundError         5   an unknown base, task or run
    ├── NameTakenError        6   the name of a base or task is in use
    ├── DataError             7   images or classes that cannot be trained on
    ├── BudgetError           8   a budget does not allow it
    ├── IntegrityError        9   bytes are missing, damaged, or belong to another base
    ├── TrainingError        10   training stopped by itself, such as on a loss that is not finite
    ├── WeightsError         11   weights that do not load
    ├── PluginError          12   an unknown, broken or clashing plugin
    │   └── PartitionError
    ├── StorageError         13   a disk or database that cannot be read or written
    ├── BusyError            14   another process is at it
    └── Interrupted         130   Ctrl-C; the run can be resumed
"""

from __future__ import annotations

from ..plugins.errors import PartitionError, PluginError, TapsError

__all__ = [
    "BudgetError",
    "BusyError",
    "DataError",
    "HomeError",
    "IntegrityError",
    "Interrupted",
    "NameTakenError",
    "NotFoundError",
    "PartitionError",
    "PluginError",
    "SchemaError",
    "SettingsError",
    "StorageError",
    "TapsError",
    "TrainingError",
    "WeightsError",
]


class SettingsError(TapsError):
    """An option is unknown, out of range, or means nothing to the method."""

    exit_code = 2


class HomeError(TapsError):
    """There is no registry where one was looked for, or there is one already."""

    exit_code = 3


class SchemaError(TapsError):
    """The catalog's schema is not the one this version works with."""

    exit_code = 4


class NotFoundError(TapsError):
    """There is no base, task or run of that name."""

    exit_code = 5


class NameTakenError(TapsError):
    """The name is in use, by a finished task or by one in training."""

    exit_code = 6


class DataError(TapsError):
    """The data cannot be trained on or evaluated."""

    exit_code = 7


class BudgetError(TapsError):
    """A storage budget does not allow it."""

    exit_code = 8


class IntegrityError(TapsError):
    """Bytes are missing or damaged, or an artifact belongs to another base."""

    exit_code = 9


class TrainingError(TapsError):
    """Training cannot go on."""

    exit_code = 10


class WeightsError(TapsError):
    """A model cannot be built or its weights do not load."""

    exit_code = 11


class StorageError(TapsError):
    """The disk or the database refuses."""

    exit_code = 13


class BusyError(TapsError):
    """Another process holds what is needed."""

    exit_code = 14


class Interrupted(TapsError):  # noqa: N818  (it is no error of ours: the user asked for it)
    """The user stopped it; the run can be resumed."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line; its name if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
