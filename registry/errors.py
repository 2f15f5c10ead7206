"""Every error that a user can act on, and what the command line exits with.

::

    TapsError                 1
    ├── SettingsError         2   an invalid option or value (click's own usage errors exit with 2 too)
    ├── HomeError             3   no registry here, or the database belongs to another one
    ├── SchemaError           4   the catalog is missing, or of another version
    ├── NotFoundError         5   an unknown base, task or run
    ├── NameTakenError        6   the name of a base or task is in use
    ├── DataError             7   images or classes that cannot be used for training or evaluation
    ├── BudgetError           8   a budget is exceeded
    ├── IntegrityError        9   files are missing, damaged, or belong to another base
    ├── TrainingError        10   training failed, for example with a non-finite loss
    ├── WeightsError         11   a model cannot be built or its weights cannot be loaded
    ├── PluginError          12   an unknown, broken or conflicting plugin
    │   └── PartitionError
    ├── StorageError         13   disk or database not readable or writable
    ├── BusyError            14   locked by another process
    └── Interrupted         130   Ctrl-C; the run can be resumed
"""

from __future__ import annotations

from ..plugins.errors import PartitionError, PluginError, TapsError
from ..plugins.errors import first_line as first_line

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
    """An option is unknown, out of range, or not accepted by the method."""

    exit_code = 2


class HomeError(TapsError):
    """There is no registry where one was looked for, or the database belongs to another one."""

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
    """The data cannot be used for training or evaluation."""

    exit_code = 7


class BudgetError(TapsError):
    """A storage budget is exceeded."""

    exit_code = 8


class IntegrityError(TapsError):
    """Files are missing or damaged, or an artifact belongs to another base."""

    exit_code = 9


class TrainingError(TapsError):
    """Training cannot continue."""

    exit_code = 10


class WeightsError(TapsError):
    """A model cannot be built or its weights cannot be loaded."""

    exit_code = 11


class StorageError(TapsError):
    """The disk or the database is not readable or writable."""

    exit_code = 13


class BusyError(TapsError):
    """Another process holds or has changed what is needed."""

    exit_code = 14


class Interrupted(TapsError):  # noqa: N818  (it is no error of ours: the user asked for it)
    """The user stopped it; the run can be resumed."""

    exit_code = 130
