"""Memory of tensors on the CPU, kept from one step to the next.

glibc hands large blocks back to the kernel as soon as they are freed, and gets them anew, page by page and zeroed, for
the next activation: a third of the time of a ResNet-50's steps. ``mallopt(3)`` says otherwise.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # names of options, from malloc.h
NEVER = -1
USUAL = {TRIM_THRESHOLD: 128 * 1024, MMAP_MAX: 65536}  # glibc's own


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within the block, freed memory stays with the process; after it, the kernel gets it back.

    Nothing happens where the C library has no ``mallopt``, as on macOS, on Windows, and with musl.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        yield
        return
    libc.mallopt(MMAP_MAX, 0)
    libc.mallopt(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        for option, value in USUAL.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)
