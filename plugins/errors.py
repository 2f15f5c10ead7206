"""The root of our error tree, and the errors that a plugin can cause."""

from typing import ClassVar


class TapsError(Exception):
    """An error a user can act on: its text says what was looked for, what there is, and what to type next.

    Attributes:
        exit_code: what the command line exits with when this error reaches it.
    """

    exit_code: ClassVar[int] = 1


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line; its name if it says nothing."""
    try:
        said = str(error).strip()
    except Exception:  # noqa: BLE001  (a stranger's class may not even be able to say what it is)
        said = ""
    return (said or type(error).__name__).splitlines()[0]


class PluginError(TapsError):
    """A plugin is unknown, disabled, broken, or two of them claim one name."""

    exit_code = 12


class PartitionError(PluginError):
    """An architecture plugin left a tensor of the model out, or put one in two places."""
