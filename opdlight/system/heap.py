"""What the C library does with the memory of tensors that are freed."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST = 2**30
LARGEST_ONCE = 2**25  # that glibc before 2.35 takes


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the tensors that come next, unless the user has set malloc by a variable.

    By default it gives every block above 32 MB, and what is free at the end of its heap, back to the system, which has
    to clear each page again before the next tensor may use it: 3 to 6 % of a SmolLM2 step on two cores. Now a process
    keeps what it had at its peak. Other C libraries and allocators take no notice.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    told = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.getenv("GLIBC_TUNABLES", "")
    if mallopt is None or told:
        return
    # without a threshold of its own, the other setting would give back every block above 128 kB
    if mallopt(M_MMAP_THRESHOLD, LARGEST) or mallopt(M_MMAP_THRESHOLD, LARGEST_ONCE):
        mallopt(M_TRIM_THRESHOLD, -1)  # never
