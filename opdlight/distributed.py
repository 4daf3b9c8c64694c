"""Several processes: what each of them has, seen by all."""

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def gathered(value: T) -> list[T]:
    """What every rank has, in the order of the ranks; [value] in a process alone.

    Every rank must call it, in the same order as other collective work. Tensors should be on the CPU.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    found: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return [item for item in found if item is not None]
