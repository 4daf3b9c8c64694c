"""What several files share: a model and a server of it, and a process group."""

from collections.abc import Iterator

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from opdlight.system import vllm_http as server
from tests.fake_server import FakeServer
from tests.models.architectures import build, save
from tests.models.served_teacher import TOKENIZER


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(server, "FIRST_PAUSE", 0.001)
    with FakeServer(build("llama"), TOKENIZER) as fake:
        yield fake


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """A group of this process alone, so that FSDP2 divides a model over one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()
