"""Memory of tensors on the CPU, kept from one batch to the next.

glibc hands large blocks back to the kernel as soon as they are freed, and gets them anew, page by page and zeroed, for
the next activation: a third of the time of a ResNet-50's steps. ``mallopt(3)`` says otherwise.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # names of options, from malloc.h
NEVER = -1
USUAL = {TRIM_THRESHOLD: 128 * 1024, MMAP_MAX: 65536}  # glibc's own

_keeping = ContextVar("keeping", default=False)


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within the block, freed memory stays with the process; after it, the kernel gets it back.

    Nothing happens in another such block, and where the C library has no ``mallopt``, as on macOS, on Windows, and with
    musl.
    """
    if _keeping.get() or sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        yield
        return
    entered = _keeping.set(True)
    libc.mallopt(MMAP_MAX, 0)
    libc.mallopt(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        _keeping.reset(entered)
        for option, value in USUAL.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)
