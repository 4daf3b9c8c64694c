"""Which trajectories a rank rolls out, by which weights, and when a signal may end it."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from opdlight.errors import EngineError
from opdlight.rollout import Sampling, ScriptedEngine, source
from opdlight.rollout.engines.base import NO_WEIGHTS
from opdlight.rollout.source import RolloutSource
from opdlight.system import distributed
from opdlight.system.preemption import Preempted
from opdlight.types import RolloutRequest
from tests.rollout.walking import GO, collector


class Weights:
    """A policy of one weight; reading it may set off something."""

    def __init__(self, on_read: Any = lambda: None) -> None:
        self.on_read = on_read

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.on_read()
        yield "w", torch.zeros(1)


@pytest.fixture
def made() -> Iterator[tuple[RolloutSource, ScriptedEngine]]:
    engine = ScriptedEngine(lambda prompt: GO)
    found = RolloutSource(lambda: collector(engine), sampling=Sampling(), seed=3)
    yield found, engine
    found.close()


def requests(groups: int) -> list[RolloutRequest]:
    return [RolloutRequest(task="walk", seed=g, group=g, sample=s) for g in range(groups) for s in range(2)]


def test_weights_are_published_before_the_rollout_that_needs_them(made: Any) -> None:
    rolls, engine = made
    rolls.train(requests(1), None, step=0, policy=Weights(), version=0)
    rolls.train(requests(1), None, step=1, policy=Weights(), version=1)
    rolls.train(requests(1), None, step=2, policy=Weights(), version=1)  # an update that was skipped
    rolls.evaluate(requests(1), policy=Weights(), version=2)
    kinds = [kind for kind, *_ in engine.events]
    assert [e for e in engine.events if e[0] == "update"] == [("update", 1), ("update", 2)]
    steps = "".join({"add": "a", "update": "U"}.get(kind, "") for kind in kinds)
    first, second, third = steps.split("U")
    assert first and len(second) == 2 * len(first) and len(third) == len(first)


def test_each_rank_rolls_out_its_share_of_every_group(monkeypatch: pytest.MonkeyPatch, made: Any) -> None:
    rolls, _ = made
    batch = requests(4)
    alone = rolls.train(batch, None, step=0, policy=Weights(), version=0)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(source, "all_gather", lambda mine: [mine, mine])  # both wait for the slower rollout
    for number in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        found = rolls.train(batch, None, step=0, policy=Weights(), version=0)
        assert [t.group for t in found] == [0, 1, 2, 3]
        assert found == alone[number::2]  # the same trajectories, wherever they are rolled out
        assert rolls.evaluate(batch, policy=Weights(), version=0) == alone[number::2]


def test_a_prefetched_rollout_goes_to_the_ranks_that_made_it(monkeypatch: pytest.MonkeyPatch, made: Any) -> None:
    rolls, _ = made
    rolls.staleness = 1
    batch = rolls.train(requests(4), None, step=0, policy=Weights(), version=0)
    monkeypatch.setattr(distributed, "all_gather", lambda mine: [batch[0::2], batch[1::2]])  # two ranks store it
    monkeypatch.setattr(source, "all_gather", lambda mine: [mine, mine])
    rolls.prefetch.put(1, batch[0::2])
    state = rolls.state_dict()
    for count in (1, 2, 3):
        monkeypatch.setattr(distributed, "world_size", lambda count=count: count)
        for number in range(count):
            monkeypatch.setattr(distributed, "rank", lambda number=number: number)
            rolls.load_state_dict(state)
            assert rolls.prefetch.peek() == batch[number::count]


def test_a_prefetched_rollout_of_another_step_is_not_used(made: Any) -> None:
    rolls, _ = made
    rolls.prefetch.put(7, rolls.train(requests(3), None, step=6, policy=Weights(), version=0))
    assert len(rolls.train(requests(1), None, step=0, policy=Weights(), version=0)) == 2


def test_a_source_that_was_closed_starts_again(made: Any) -> None:
    rolls, engine = made
    rolls.train(requests(1), None, step=0, policy=Weights(), version=0)
    rolls.close()
    assert engine.events[-1] == ("close",)
    assert len(rolls.train(requests(1), None, step=1, policy=Weights(), version=0)) == 2


def test_a_signal_during_publication_ends_the_step_before_its_rollout(made: Any) -> None:
    rolls, engine = made
    rolls.preemption.busy = True  # as while training

    def signal() -> None:
        rolls.preemption.asked = True

    with pytest.raises(Preempted) as stop:
        rolls.train(requests(1), None, step=1, policy=Weights(signal), version=1)
    assert stop.value.between_steps
    assert [kind for kind, *_ in engine.events] == ["update"]
    assert rolls.preemption.busy


class Forgetful(ScriptedEngine):
    """Loses its weights in sleep, as an engine on a GPU does."""

    def sleep(self) -> None:
        super().sleep()
        self.policy_version = NO_WEIGHTS


def short(engine: ScriptedEngine) -> str:
    """The order of what the engine did: woken, updated to a version, rolling out, asleep, closed."""
    said = {"wake": "w", "update": "U", "add": "a", "finish": "a", "sleep": "s", "close": "c"}
    events = (said[str(kind)] + (str(of[0]) if kind == "update" else "") for kind, *of in engine.events)
    return re.sub("a+", "a", "".join(events))


@pytest.mark.parametrize(("engine_class", "before_updates"), [(ScriptedEngine, ""), (Forgetful, "U0")])
def test_the_engine_is_awake_only_while_it_gets_weights_and_rolls_out(engine_class: Any, before_updates: str) -> None:
    engine = engine_class(lambda prompt: GO)
    rolls = RolloutSource(lambda: collector(engine), sampling=Sampling(), seed=3)
    rolls.start()
    assert short(engine) == "s"
    rolls.evaluate(requests(1), policy=Weights(), version=0)  # before any update
    assert short(engine) == f"sw{before_updates}as"
    for step in range(2):
        rolls.train(requests(1), requests(1), step=step, policy=Weights(), version=step)
        assert engine.events[-1] == ("sleep",)  # now the student trains
    rolls.evaluate(requests(1), policy=Weights(), version=2)
    rolls.close()
    assert short(engine) == f"sw{before_updates}asw{before_updates}aswU1aswU2asc"


def test_an_engine_that_rolls_out_during_the_training_never_sleeps() -> None:
    engine = ScriptedEngine(lambda prompt: GO)
    rolls = RolloutSource(lambda: collector(engine), sampling=Sampling(), seed=3, staleness=1)
    rolls.start()
    rolls.train(requests(1), requests(1), step=0, policy=Weights(), version=0)
    rolls.train(requests(1), None, step=1, policy=Weights(), version=1)
    rolls.evaluate(requests(1), policy=Weights(), version=2)
    rolls.close()
    assert short(engine) == "aU2ac"


def test_after_an_error_in_a_rollout_the_engine_can_be_closed() -> None:
    broken = True

    def answer(prompt: list[int]) -> list[int]:
        if broken:
            raise EngineError("out of memory")
        return GO

    engine = ScriptedEngine(answer)
    rolls = RolloutSource(lambda: collector(engine), sampling=Sampling(), seed=3)
    rolls.start()
    with pytest.raises(EngineError, match="out of memory"):
        rolls.train(requests(1), None, step=0, policy=Weights(), version=1)
    assert short(engine) == "swU1a"  # awake
    rolls.close()
    assert short(engine) == "swU1ac"


def test_a_publication_says_its_bytes_and_seconds() -> None:
    class Counting(ScriptedEngine):
        def stats(self) -> dict[str, float]:
            return {"update_bytes": 4.0 * sum(int(str(e[1])) for e in self.events if e[0] == "update")}

    rolls = RolloutSource(lambda: collector(Counting(lambda prompt: GO)), sampling=Sampling())
    rolls.publish(Weights(), 0)
    assert rolls.published is None  # the engine has these weights
    for version in (3, 4):
        rolls.publish(Weights(), version)
        assert rolls.published is not None
        assert rolls.published.bytes == 4 * version  # of this one, not of all
        assert rolls.published.seconds > 0
    rolls.close()


def test_an_engine_that_counts_no_bytes_is_published_to_without_figures(made: Any) -> None:
    rolls, _ = made
    rolls.publish(Weights(), 1)
    assert rolls.published is None
