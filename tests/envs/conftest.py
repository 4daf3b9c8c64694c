"""What the tests of several environments share."""

from collections.abc import Iterator

import pytest

from opdlight.envs.openenv import session
from tests.envs.fake_openenv import FakeOpenEnv

collect_ignore = ["openenv_games.py"]  # for a server's process; its doctests would import the server's packages here


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "FIRST_PAUSE", 0.001)


@pytest.fixture
def fake() -> Iterator[FakeOpenEnv]:
    with FakeOpenEnv() as server:
        yield server
