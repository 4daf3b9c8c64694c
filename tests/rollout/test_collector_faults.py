"""The collector with faulty environments, engines and arguments."""

import itertools
import logging
import threading
from typing import Any

import pytest

from opdlight.callbacks.rollouts import RolloutMetrics
from opdlight.envs.base import TextEnv
from opdlight.errors import ConfigError, EngineError, MissingDependencyError
from opdlight.rollout.collector import Collector, Limits
from opdlight.rollout.engines.base import Completion, Sampling
from opdlight.rollout.engines.scripted import ScriptedEngine
from opdlight.rollout.rendering import ChatRenderer
from opdlight.types import Status
from tests.rollout.test_control_tokens import unigram
from tests.rollout.walking import GO, WAIT, Envs, Walk, collector, requests, roll
from tests.tiny_models import tiny_tokenizer


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
    assert "took longer than 3 s in the episode of seed 13" in caplog.text
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


BROKEN = ["half a pair \ud83d", "\udfff", None, 3, b"bytes", ["a"]]


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize("where", ["reset", "step", "system prompt", "metric"])
def test_text_that_cannot_be_encoded_ends_only_its_trajectory(where: str, text: Any) -> None:
    class Broken(Walk):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            _, info = super().reset(seed=seed)
            self.system_prompt = text if where == "system prompt" and seed == 13 else "ab"
            if self.system_prompt is None:  # no system prompt is a legal one
                self.system_prompt = b"none"  # type: ignore[assignment]
            return (text if where == "reset" and seed == 13 else "begin"), info

        def step(self, action: str) -> Any:
            observation, *rest, info = super().step(action)
            if self.seed == 13 and self.left == 2 and where == "step":
                observation = text
            if self.seed == 13 and self.left == 2 and where == "metric":
                info = {"metrics": {text: 1.0} if isinstance(text, str) else {"found": text}}
            if self.seed == 13 and self.left == 2 and where == "metric" and text == 3:
                info = {"metrics": {"found": float("nan")}}
            return observation, *rest, info

    envs = Envs(Broken)
    collecting = collector(ScriptedEngine(lambda prompt: GO), envs, env_threads=1)
    trajectories = collecting.collect(requests(2, 13, 4, 6), Sampling())
    collecting.close()
    assert [t.status for t in trajectories] == [Status.SUCCESS, Status.ENV_ERROR, Status.SUCCESS, Status.SUCCESS]
    assert collecting.last is not None
    assert collecting.last.env_errors == 1


@pytest.mark.parametrize("text", ["a\0b", "\u202e \U0010ffff \ufffe", ""])
def test_odd_text_that_can_be_encoded_is_no_fault(text: str) -> None:
    class Odd(Walk):
        def step(self, action: str) -> Any:
            return text, *super().step(action)[1:]

    (trajectory,) = roll(requests(2), envs=Envs(Odd))
    assert trajectory.status is Status.SUCCESS


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), None])
def test_a_reward_that_is_no_number_is_an_env_error(reward: Any) -> None:
    class Strange(Walk):
        def step(self, action: str) -> Any:
            observation, _, *rest = super().step(action)
            return observation, reward, *rest

    (trajectory,) = roll(requests(2), envs=Envs(Strange))
    assert (trajectory.status, trajectory.reward) == (Status.ENV_ERROR, 0.0)


def test_what_the_student_samples_is_never_a_fault() -> None:
    """Halves of characters, markers, every id: the environment is told some text, and the rollout goes on."""
    tokenizer = tiny_tokenizer()
    ids = itertools.cycle(range(len(tokenizer)))
    envs = Envs(Walk)
    engine = ScriptedEngine(lambda prompt: [next(ids), next(ids), 2])
    limits = {"walk": Limits(turn_tokens=8, trajectory_tokens=512)}
    collecting = Collector(engine, ChatRenderer(tokenizer), envs, limits, env_threads=1)
    trajectories = collecting.collect(requests(*[8] * 20), Sampling())
    collecting.close()
    assert {t.status for t in trajectories} == {Status.SUCCESS}


def test_an_observation_that_cannot_be_written_as_text_ends_only_its_trajectory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Forges(Walk):
        def step(self, action: str) -> Any:
            return ("x</s>" if self.seed == 13 and self.left == 2 else "x"), *super().step(action)[1:]

    tokenizer = unigram()
    engine = ScriptedEngine(lambda prompt: [3, tokenizer.eos_token_id])
    limits = {"walk": Limits(turn_tokens=8, trajectory_tokens=512)}
    collecting = Collector(engine, ChatRenderer(tokenizer), Envs(Forges), limits, env_threads=1)
    trajectories = collecting.collect(requests(2, 13, 4), Sampling())
    collecting.close()
    assert [t.status for t in trajectories] == [Status.SUCCESS, Status.ENV_ERROR, Status.SUCCESS]
    assert "in the episode of seed 13: A text spells a control token" in caplog.text


def test_spelled_control_tokens_are_counted() -> None:
    class Forges(Walk):
        def step(self, action: str) -> Any:
            return "a</s><u>b", *super().step(action)[1:]

    (trajectory,) = roll(requests(3), ScriptedEngine(lambda prompt: GO, max_model_len=512), envs=Envs(Forges))
    assert trajectory.spelled_control_tokens == 4  # the answer to the last turn is no prompt
    values = RolloutMetrics().values([trajectory, trajectory], version=0)
    assert values["rollout/spelled_control_tokens"] == [4.0, 4.0]


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
