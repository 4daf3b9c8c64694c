"""Several processes: what each of them has, seen by all."""

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

T = TypeVar("T")


def all_gather(value: T) -> list[T]:
    """What every rank has, in the order of the ranks; [value] in a process alone.

    Every rank must call it, in the same order as other collective work. Tensors should be on the CPU.
    """
    if world_size() == 1:
        return [value]
    found = [value] * world_size()  # each place is overwritten
    dist.all_gather_object(found, value)
    return found


def rank() -> int:
    """This process's number; 0 in a process alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are; 1 for a process alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor that is divided over the ranks, put together; every rank must ask. Others come back as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
