"""What the C library does with the memory of tensors that are freed."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST = 2**30


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the tensors that come next, unless the user has set a `MALLOC_…` variable.

    By default it gives every block above 32 MB, and what is free at the end of its heap, back to the system, which has
    to clear each page again before the next tensor may use it: 3 to 6 % of a SmolLM2 step on two cores. Now a process
    keeps what it had at its peak. Other C libraries and allocators take no notice.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, -1)  # never
