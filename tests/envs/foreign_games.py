"""Hand-written Gymnasium environments that know nothing of opdlight, and functions that say their observations."""

from enum import IntEnum
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

HERE = __name__
LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz ")


class Echo(gymnasium.Env[str, str]):
    """Say the word back. Written for text: it needs no adapter."""

    observation_space = spaces.Text(40, charset=LETTERS)
    action_space = spaces.Text(10, charset=LETTERS)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.word = "".join(self.np_random.choice(list("abcdef"), size=6))
        self.heard: list[str] = []
        return f"say {self.word}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.heard.append(action)
        return "well", float(action == self.word), action == self.word, False, {}


class Dials(gymnasium.Env[Any, Any]):
    """Turn a dial and a switch, numbered from 1, to what the seed asks for."""

    class actions(IntEnum):  # of no use for a MultiDiscrete space
        push = 0

    observation_space = spaces.Box(0, 9, (2,), int)
    action_space = spaces.MultiDiscrete([3, 2], start=[1, 0])
    last: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.goal = np.array([1 + self.np_random.integers(3), self.np_random.integers(2)])
        return self.goal, {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        right = bool((action == self.goal).all())
        return self.goal, np.float32(right), right, False, {}


class Script(gymnasium.Env[Any, int]):
    """Every step returns the next of `ends`: (reward, terminated, truncated, info)."""

    class actions(IntEnum):
        PUSH_IT = 0
        pull = 1

    observation_space = spaces.Dict({"words": spaces.Text(9), "number": spaces.Discrete(3)})
    action_space = spaces.Discrete(2)
    ends: tuple[Any, ...] = ((1.0, True, False, {}),)

    def __init__(self, *ends: Any) -> None:
        self.ends = ends or self.ends

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.played: list[int] = []
        return {"words": "begin", "number": 0}, {}

    def step(self, action: int) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.played.append(action)
        reward, terminated, truncated, info = self.ends[len(self.played) - 1]
        return {"words": "next", "number": 1}, reward, terminated, truncated, info


class Numbers(Script):
    observation_space = spaces.Dict({"number": spaces.Discrete(3)})  # type: ignore[assignment]


class Several(Script):
    reward_space = spaces.Box(0, 1, (3,))


class Nameless(Script):
    actions = None  # type: ignore[assignment]


def cell(observation: int, env: gymnasium.Env[Any, Any]) -> str:
    return f"You are at {observation} of {env.observation_space}."


def aim(observation: Any, env: gymnasium.Env[Any, Any]) -> str:
    return f"goal {observation}"


def nothing(observation: Any, env: gymnasium.Env[Any, Any]) -> None:
    return None
