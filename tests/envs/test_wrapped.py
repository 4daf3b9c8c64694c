"""Wrappers and limits that Gymnasium puts around a text environment hold, and its own words are still heard."""

from collections.abc import Iterator
from typing import Any

import gymnasium
import pytest
from gymnasium.wrappers import RecordEpisodeStatistics, TransformObservation

from opdlight.data.tasks import Task, TaskMixture
from opdlight.doctor.patient import openings
from opdlight.envs.base import TextEnv, UnicodeText
from opdlight.envs.conformance import check_text_env
from opdlight.envs.wrapped import text_env
from opdlight.errors import ConfigError, EnvError
from opdlight.sft.demonstrations import demonstrate


class Count(TextEnv):
    """Count up to `goal`; the expert says the next number."""

    max_turns = 5
    system_prompt = "Count."

    def __init__(self, goal: int = 3) -> None:
        super().__init__()
        self.goal, self.prepared = goal, list[int]()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.n = self.turn = 0
        return f"game {self.np_random.integers(10**6)}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        self.n += action == str(self.n + 1)
        won = self.n == self.goal
        truncated = not won and self.turn == self.max_turns
        info: dict[str, Any] = {"metrics": {}} | ({"success": won} if won or truncated else {})
        return f"at {self.n}", float(won), won, truncated, info

    def reply(self, command: str) -> str:
        return f"<{command}>"

    def expert_action(self) -> str:
        return str(self.n + 1)

    def prepare(self, seed: int) -> None:
        self.prepared.append(seed)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register("test/Count-v0", entry_point=Count)
    gymnasium.register("test/ShortCount-v0", entry_point=Count, max_episode_steps=2)
    yield
    del gymnasium.registry["test/Count-v0"], gymnasium.registry["test/ShortCount-v0"]


def shout(env: gymnasium.Env[str, str]) -> gymnasium.Env[str, str]:
    return RecordEpisodeStatistics(TransformObservation(env, str.upper, UnicodeText()))  # type: ignore[arg-type]


def task(name: str = "test/Count-v0", **env: Any) -> Task:
    return Task(env={"id": name, **env}, teacher="t")


def test_a_registered_step_limit_truncates() -> None:
    env = task("test/ShortCount-v0").make_env()
    assert (env.max_turns, env.system_prompt, type(env.unwrapped)) == (2, "Count.", Count)
    env.reset(seed=0)
    assert env.step("1")[2:4] == (False, False)
    _, reward, terminated, truncated, info = env.step("2")
    assert (reward, terminated, truncated, info["success"]) == (0.0, False, True, False)


def test_a_limit_in_the_config_truncates_and_a_goal_reached_on_its_step_is_success() -> None:
    env = task(goal=2, max_episode_steps=2).make_env()
    env.reset(seed=0)
    env.step("1")
    assert env.step("2")[2:4] == (True, False)
    assert demonstrate("count", task(goal=2, max_episode_steps=2), 0, 0.0).success
    assert not demonstrate("count", task(goal=3, max_episode_steps=2), 0, 0.0).success


def test_wrappers_work_and_the_innermost_words_are_heard() -> None:
    env = text_env(shout(Count()))
    observation, _ = env.reset(seed=3)
    assert observation.startswith("GAME ")
    for answer in ("1", "2"):
        env.step(answer)
    assert (env.expert_action(), env.reply("3")) == ("3", "<3>")
    env.prepare(7)
    assert env.unwrapped.prepared == [7]  # type: ignore[attr-defined]
    observation, reward, terminated, _, info = env.step("3")
    assert (observation, reward, terminated, info["episode"]["l"], info["success"]) == ("AT 3", 1.0, True, 3, True)


def test_the_doctor_sees_what_is_played() -> None:
    (opening,) = openings("count", task("test/ShortCount-v0"), 1)
    assert (opening.max_turns, opening.system_prompt, opening.fresh_prompt) == (2, "Count.", False)


def test_the_conformance_check_takes_an_env_in_its_wrappers() -> None:
    check_text_env(lambda: gymnasium.make("test/ShortCount-v0"))
    check_text_env(lambda: shout(Count()))
    with pytest.raises(EnvError, match=r"Rule `gymnasium` broken .*CartPoleEnv observes a Box"):
        check_text_env(lambda: gymnasium.make("CartPole-v1"))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({}, r"`task\.tasks\.a\.env\.id` to be the Gymnasium id"),
        ({"id": "test/Cuont-v0"}, r"environment of `task\.tasks\.a\.env\.id`, 'test/Cuont-v0': .*Count"),
        ({"id": "Cuont-v0"}, r"`task\.tasks\.a\.env\.id`, 'Cuont-v0': .* registers is named module:id"),
        ({"id": "nowhere:Count-v0"}, r"environment of `task\.tasks\.a\.env\.id`, .*nowhere"),
        ({"id": "CartPole-v1"}, r"`task\.tasks\.a\.env`: CartPoleEnv observes a Box of shape \(4,\), which is no text"),
        ({"id": "test/Count-v0", "adapter": {}}, r"`adapter` to be left out, because Count is a text"),
        ({"id": "test/Count-v0", "goall": 3}, r"key `task\.tasks\.a\.env\.goall`: .*`task\.tasks\.a\.env\.goal`"),
        ({"id": "test/Count-v0", "goal": "x"}, r"`task\.tasks\.a\.env\.goal` to be int, but got 'x'"),
        ({"id": "test/Count-v0", "max_episode_steps": 0}, r"env\.max_episode_steps` to be int ≥ 1 or null, but got 0"),
        ({"id": "opdlight/ToyText-v0", "max_turns": 1}, r"env\.max_turns` to be int ≥ 2, but got 1"),
        ({"id": "opdlight/ToyText-v0", "size": 99}, r"env\.size` to be int in \[3, 20\] or null, but got 99"),
        ({"id": "opdlight/ReasoningGym-v0"}, r"Missing `task\.tasks\.a\.env\.dataset`"),
        ({"id": "opdlight/ReasoningGym-v0", "dataset": "chain_sun"}, r"`task\.tasks\.a\.env`: .*'chain_sum'"),
    ],
)  # fmt: skip
def test_arguments_are_checked_before_anything_else(env: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TaskMixture({"a": Task(env=env, teacher="t")}).check_envs()


class Fails(Count):
    """Its author's mistake."""

    closed = 0

    def __init__(self, fails: bool = True) -> None:
        super().__init__()
        if fails:
            raise ValueError("a mistake of its author")

    def close(self) -> None:
        Fails.closed += 1


def test_what_an_environment_raises_when_it_is_made_names_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = gymnasium.envs.registration.EnvSpec("test/Fails-v0", Fails)
    monkeypatch.setitem(gymnasium.registry, "test/Fails-v0", spec)
    good = Task(env={"id": "test/Fails-v0", "fails": False}, teacher="t")
    bad = Task(env={"id": "test/Fails-v0"}, teacher="t")
    with pytest.raises(ValueError, match="a mistake of its author") as error:
        TaskMixture({"bad": bad, "good": good}).check_envs()
    assert error.value.__notes__ == ["This came from the environment of `task.tasks.bad.env`."]
    assert Fails.closed == 1, "the others are closed"
    wrong = Task(env={"id": "CartPole-v1"}, teacher="t")
    with pytest.raises(ConfigError, match=r"^`task\.tasks\.wrong\.env`: .* is no text"):
        TaskMixture({"bad": bad, "wrong": wrong}).check_envs()


def test_what_is_no_environment_is_named() -> None:
    with pytest.raises(ConfigError, match=r"Expected a gymnasium\.Env, but got int"):
        text_env(3)  # type: ignore[arg-type]
