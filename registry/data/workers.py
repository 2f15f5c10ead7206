"""Processes that load images, when one of them dies: no memory, a small /dev/shm, somebody's kill."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import DataError, TrainingError

SHARED_MEMORY = ("unable to allocate shared memory", "unable to mmap", "unable to open shared memory", "Bus error")
SCARCE = {errno.ENOMEM: "memory", errno.EAGAIN: "processes", errno.EMFILE: "open files", errno.ENOSPC: "shared memory"}
WHAT_TO_DO = "Use fewer --workers, or --workers 0."


class WorkersDiedError(TrainingError):
    """A process that loads images died, or could not begin; the others have been stopped."""


@contextmanager
def deaths_explained() -> Iterator[None]:
    """Turn what torch raises when a loader process dies into an error that says what to do.

    torch notices by the signal of the child's end, at any place in the block, and every five seconds while it waits for
    a batch.

    Raises:
        WorkersDiedError: with the reason, as far as it is known.
        DataError: for an image that one of them could not read, in one line.
    """
    try:
        yield
    except DataError as error:  # torch puts the traceback of the process before what it said
        if "\nOriginal Traceback" not in str(error):
            raise
        raise DataError(str(error).rpartition(f"{DataError.__name__}: ")[2].strip()) from error
    except RuntimeError as error:
        reason = _reason("\n".join(str(cause) for cause in _chain(error)))
        if not reason:
            raise
        raise WorkersDiedError(f"{reason} {WHAT_TO_DO}") from error
    except OSError as error:
        if error.errno not in SCARCE or error.filename:  # with a file's name it is about that file
            raise
        scarce = SCARCE[error.errno]
        raise WorkersDiedError(
            f"There is not enough of {scarce} for processes that load images. {WHAT_TO_DO}"
        ) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it: torch tells the signal in one, and only that a process is gone in the next."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(text: str) -> str:
    """What happened, in words; empty if no loader process died."""
    if any(sign in text for sign in SHARED_MEMORY):
        return "A process that loads images found no room in shared memory (/dev/shm; in a container, its --shm-size)."
    if "DataLoader worker" not in text or not ("killed by signal" in text or "exited unexpectedly" in text):
        return ""
    if "killed by signal: Killed" in text:
        return "A process that loads images was killed, most likely because memory ran out."
    signal = text.partition("killed by signal: ")[2].partition(".")[0].strip()
    return f"A process that loads images died{f' ({signal})' if signal else ''}."
