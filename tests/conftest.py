"""What tests of several folders share."""

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest

from tests.tiny_models import save_tiny

# Ray starts its workers at nice 15, so on busy cores its engines would wait for all other tests
os.environ.setdefault("RAY_worker_niceness", "0")
# files that take most of the time: begun first, so that no process is left with a long one while the others have ended
LONG = ("tests/end_to_end/", "tests/tools/test_tools.py", "tests/lab/", "tests/test_wheel.py", "tests/report/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first; the order is otherwise pytest's."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return str(save_tiny(folder / "student", 1)), str(save_tiny(folder / "teacher", 2))


@pytest.fixture(autouse=True)
def loggers_stay_enabled() -> Iterator[None]:
    """A test that runs Hydra in this process leaves opdlight's loggers disabled: Hydra runs without a log."""
    yield
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("opdlight") and isinstance(logger, logging.Logger):
            logger.disabled = False


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to stand in, whose modules can be imported; afterwards they are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    modules, environments = set(sys.modules), dict(gymnasium.registry)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
    gymnasium.registry.clear()
    gymnasium.registry.update(environments)
