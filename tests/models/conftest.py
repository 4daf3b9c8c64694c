"""The served teachers' tests share a model and a server of it."""

from collections.abc import Iterator

import pytest

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
