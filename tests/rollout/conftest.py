"""What every rollout test leaves behind: nothing."""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from opdlight.rollout import VLLMServerEngine
from opdlight.system import vllm_http as module
from tests.fake_server import FakeServer
from tests.rollout.served import TOKENIZER, student
from tests.rollout.walking import WAIT
from tests.tiny_models import save_tiny

FAILED = pytest.StashKey[bool]()


def alive() -> int:
    return sum(thread.name != "tqdm_monitor" for thread in threading.enumerate())  # progress bars keep theirs


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(autouse=True)
def no_thread_left(request: pytest.FixtureRequest) -> Iterator[None]:
    before = alive()
    yield
    if FAILED in request.node.stash:
        return  # it closed nothing, and says enough
    deadline = time.monotonic() + WAIT
    while (left := alive()) > before and time.monotonic() < deadline:
        time.sleep(0.005)
    assert left <= before, f"threads that a test left behind: {threading.enumerate()}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), spread=0.1)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    with FakeServer(student(9), TOKENIZER) as fake:  # it was started with other weights than the student's
        yield fake


@pytest.fixture
def start(folder: Path, fake: FakeServer, tmp_path: Path) -> Iterator[Callable[..., VLLMServerEngine]]:
    engines = []

    def start(**changed: Any) -> VLLMServerEngine:
        how: Any = {"model": str(folder), "max_model_len": 64, "concurrency": 4, "timeout": 20.0, "retries": 6}
        engines.append(VLLMServerEngine(**{**how, "url": fake.url, "weights_folder": str(tmp_path / "w"), **changed}))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()
