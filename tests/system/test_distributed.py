"""Gathering of a sharded weight in another dtype."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from opdlight.system.distributed import full_tensor


class Gathered(TorchDispatchMode):
    """Records the dtype of everything that is gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented
        if "all_gather" in str(func):
            self.dtypes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Two ranks, of which this process is the first; torch's fake backend sends nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("stored", "wanted", "sent"),
    [
        ("float32", "bfloat16", "bfloat16"),
        ("float32", "float32", "float32"),
        ("bfloat16", "float32", "bfloat16"),
        ("float32", None, "float32"),
    ],
)
def test_the_smaller_dtype_is_gathered(mesh: DeviceMesh, stored: str, wanted: str | None, sent: str) -> None:
    weight = torch.randn(6, 3).to(getattr(torch, stored))
    dtype = None if wanted is None else getattr(torch, wanted)
    with Gathered() as gathered:
        found = full_tensor(distribute_tensor(weight, mesh, [Shard(0)]), dtype)
    assert gathered.dtypes == [getattr(torch, sent)]
    assert (found.shape, found.dtype) == (weight.shape, dtype or weight.dtype)
    assert torch.equal(full_tensor(weight, dtype), weight if dtype is None else weight.to(dtype))  # in one process
