"""An engine and its collector end with the block that opened them, whatever happens in it."""

from typing import Any

import pytest

from opdlight.data import Task
from opdlight.errors import ConfigError
from opdlight.models.loading import load_tokenizer
from opdlight.rollout import Collector, ScriptedEngine, open_collector, open_engine

TASK = Task(env={"id": "opdlight/ToyText-v0", "game": "Taxi-v4"}, turn_tokens=8, trajectory_tokens=64)
TOO_LONG = Task(env=TASK.env, turn_tokens=8, trajectory_tokens=10**9)


class Watched(ScriptedEngine):
    """Says when it is closed."""

    def __init__(self, closed: list[str]) -> None:
        super().__init__(lambda prompt: [0])
        self.closed = closed

    def close(self) -> None:
        self.closed.append("engine")


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    close = Collector.close

    def noted(collector: Collector) -> None:
        found.append("environments")
        close(collector)

    monkeypatch.setattr(Collector, "close", noted)
    return found


def test_both_end_with_the_block_the_environments_first(closed: list[str]) -> None:
    engine = Watched(closed)
    with open_collector(lambda: engine, load_tokenizer("lab/student"), {"taxi": TASK}, 1) as collector:
        assert (collector.engine, list(collector.limits), closed) == (engine, ["taxi"], [])
    assert closed == ["environments", "engine"]


def test_both_end_after_an_error_too(closed: list[str]) -> None:
    tokenizer: Any = load_tokenizer("lab/student")
    with pytest.raises(KeyError), open_collector(lambda: Watched(closed), tokenizer, {"taxi": TASK}, 1):
        raise KeyError
    assert closed == ["environments", "engine"]
    with pytest.raises(KeyError), open_engine(lambda: Watched(closed)):
        raise KeyError
    assert closed == ["environments", "engine", "engine"]


def test_an_engine_whose_collector_is_refused_is_closed(closed: list[str]) -> None:
    too_long = {"taxi": TOO_LONG}
    opened = open_collector(lambda: Watched(closed), load_tokenizer("lab/student"), too_long, 1)
    with pytest.raises(ConfigError, match="trajectory_tokens"), opened:
        pass
    assert closed == ["engine"]
