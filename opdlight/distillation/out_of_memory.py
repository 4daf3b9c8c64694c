"""A lack of memory, and micro-batches small enough for it."""

import torch


def is_out_of_memory(error: RuntimeError) -> bool:
    """Is it a lack of memory, on a GPU or on the CPU?"""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
