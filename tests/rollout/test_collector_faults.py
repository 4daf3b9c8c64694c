"""The collector when environments, engines or arguments are at fault."""

import logging
import threading
from typing import Any

import pytest

from opdlight.envs.base import TextEnv
from opdlight.errors import ConfigError, EngineError, MissingDependencyError
from opdlight.rollout.engine import Completion, Sampling, ScriptedEngine
from opdlight.types import Status
from tests.rollout.walking import GO, WAIT, Envs, Walk, collector, requests, roll


@pytest.mark.parametrize("where", ["reset", "step"])
def test_environment_that_raises_ends_only_its_trajectory(where: str, caplog: pytest.LogCaptureFixture) -> None:
    class Breaks(Walk):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            if where == "reset" and seed == 13:
                raise RuntimeError("broken door")
            return super().reset(seed=seed)

        def step(self, action: str) -> Any:
            if where == "step" and self.seed == 13 and self.left == 2:
                raise RuntimeError("broken door")
            return super().step(action)

    envs = Envs(Breaks)
    collecting = collector(ScriptedEngine(lambda prompt: GO), envs, env_threads=1, max_active=1)
    with caplog.at_level(logging.ERROR):
        trajectories = collecting.collect(requests(2, 13, 4, 6), Sampling())
    assert [t.status for t in trajectories] == [Status.SUCCESS, Status.ENV_ERROR, Status.SUCCESS, Status.SUCCESS]
    assert len(trajectories[1].turns) == (0 if where == "reset" else 2)  # what was sampled is kept
    assert [r for r in caplog.messages if "'walk'" in r and "13" in r] == caplog.messages
    assert len(caplog.messages) == 1
    assert "broken door" in caplog.text
    assert collecting.last is not None
    assert collecting.last.env_errors == 1
    assert len(envs.made) == 2  # the broken one was replaced, the others were reused
    assert envs.made[0].closed
    assert not envs.made[1].closed
    collecting.close()
    assert envs.made[1].closed


@pytest.mark.parametrize("where", ["reset", "step"])
def test_environment_that_hangs_is_given_up_with_its_thread(where: str, caplog: pytest.LogCaptureFixture) -> None:
    free = threading.Event()

    class Hangs(Walk):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            if where == "reset" and seed == 13:
                free.wait(60)
            return super().reset(seed=seed)

        def step(self, action: str) -> Any:
            if where == "step" and self.seed == 13 and self.left == 2:
                free.wait(60)
            return super().step(action)

    envs = Envs(Hangs)
    collecting = collector(ScriptedEngine(lambda prompt: GO), envs, env_threads=1, env_seconds=3.0)
    with caplog.at_level(logging.ERROR):
        trajectories = collecting.collect(requests(2, 13, 4, 6), Sampling())
    assert [t.status for t in trajectories] == [Status.SUCCESS, Status.ENV_ERROR, Status.SUCCESS, Status.SUCCESS]
    assert "took longer than 3.0 s in the episode of seed 13" in caplog.text
    (again,) = collecting.collect(requests(4), Sampling())  # the late answer, should it come now, disturbs nobody
    assert again.status is Status.SUCCESS
    collecting.close()  # does not wait for the one that hangs
    free.set()


def test_a_limit_of_no_time_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.tasks\.walk\.env_seconds` to be a positive number, but got 0"):
        collector(ScriptedEngine(lambda prompt: GO), Envs(Walk), env_seconds=0)


@pytest.mark.parametrize("answer", [("end", 0.0, True, False, {}), (None, 0.0, False, False, {}), ("x", 0.0)])
def test_environment_that_breaks_its_contract_is_an_env_error(answer: Any) -> None:
    class Wrong(Walk):
        def step(self, action: str) -> Any:
            return answer

    (trajectory,) = roll(requests(1), envs=Envs(Wrong))
    assert trajectory.status is Status.ENV_ERROR


@pytest.mark.parametrize("error", [ConfigError("no such game"), MissingDependencyError.extra("ALFWorld", "alfworld")])
def test_errors_that_would_hit_every_episode_stop_the_run(error: Exception) -> None:
    class Unusable(Walk):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            raise error

    with pytest.raises(type(error)):
        roll(requests(1, 2), envs=Envs(Unusable))

    def unmakeable(task: str) -> TextEnv:
        raise error

    with pytest.raises(type(error)):
        roll(requests(1, 2), envs=unmakeable)


def test_a_collection_after_an_aborted_one_is_not_mixed_up_with_it() -> None:
    release = threading.Event()

    class Once(Walk):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            if seed == 1:
                raise ConfigError("stop")
            if seed == 3:
                release.wait(WAIT)
            return super().reset(seed=seed)

    collecting = collector(ScriptedEngine(lambda prompt: GO), Envs(Once))
    with pytest.raises(ConfigError):
        collecting.collect(requests(3, 1), Sampling())
    release.set()  # its answer comes now, into the next collection
    trajectories = collecting.collect(requests(2, 4), Sampling())
    assert [len(t.turns) for t in trajectories] == [2, 4]
    collecting.close()


def test_engine_that_loses_a_request_is_an_error() -> None:
    class Loses(ScriptedEngine):
        def step(self) -> list[Completion]:
            super().step()
            return []

    with pytest.raises(EngineError, match="no unfinished request"):
        roll(requests(2), Loses(lambda prompt: GO))


@pytest.mark.parametrize(
    ("kwargs", "key"),
    [
        ({"turn": 0}, r"task\.tasks\.walk\.turn_tokens"),
        ({"context": 5000}, r"task\.tasks\.walk\.trajectory_tokens.*engine\.max_model_len"),
        ({"env_threads": 0}, "env_threads"),
        ({"max_active": 0}, "max_active"),
    ],
)
def test_bad_limits_name_their_key(kwargs: dict[str, int], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        collector(ScriptedEngine(lambda prompt: GO), **kwargs)


def test_unknown_task_is_named() -> None:
    with pytest.raises(ConfigError, match=r"walk.*fly"):
        roll(requests(1, task="fly"))
