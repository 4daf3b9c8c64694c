"""Collective operations that also work in a single process."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

T = TypeVar("T")


def all_gather(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """The `value` of every rank, in the order of the ranks; [value] where there is one process.

    Collective: every rank must call it. The value is pickled, so tensors in it should be on the CPU.

    Args:
        value: of this rank.
        group: a group of all processes, for a thread that must not meet the main one; None is the main one's.
    """
    if world_size() == 1:
        return [value]
    found = [value] * world_size()  # all_gather_object overwrites each entry
    dist.all_gather_object(found, value, group)
    return found


def of_first(value: T) -> T:
    """The first rank's `value`: what it finds on its disk decides, so that all ranks do the same.

    Collective: every rank must call it.
    """
    if world_size() == 1:
        return value
    found = [value]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def share(items: Sequence[T]) -> list[T]:
    """This rank's items: they are dealt to the ranks in turn, one by one."""
    return list(items[rank() :: world_size()])


def all_gather_shares(mine: Sequence[T]) -> list[T]:
    """The items of all ranks in the order in which `share` has dealt them. Collective: every rank must call it."""
    nothing = object()
    rounds = zip_longest(*all_gather(list(mine)), fillvalue=nothing)
    return [item for each in rounds for item in each if item is not nothing]  # type: ignore[misc]


def rank() -> int:
    """This process's rank in the process group; 0 where there is none."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes in the process group; 1 where there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def full_tensor(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A sharded tensor gathered from all ranks (collective: every rank must call it); any other tensor as it is.

    Args:
        tensor: sharded or not.
        dtype: of the result; None leaves it. A smaller one is taken shard by shard, before anything is sent.
    """
    if dtype is not None and dtype.itemsize < tensor.dtype.itemsize:
        tensor = tensor.to(dtype)
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole if dtype is None else whole.to(dtype)
