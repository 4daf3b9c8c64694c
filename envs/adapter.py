"""Any Gymnasium environment whose observations and actions can be said in words, as a text environment."""

import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from opdlight.bounds import FiniteFloat, PositiveInt
from opdlight.envs.actions import action_counts
from opdlight.envs.adapted_actions import NamedActions, actions_of, described, is_text
from opdlight.envs.base import TextEnv, on_side_of, read_action, redraw
from opdlight.errors import ConfigError, EnvError

DEFAULT_MAX_TURNS = 100
REDRAWS = 200  # a side has three starts in four, or one: the chance that none of so many draws is on it is below 1e-24
SEVERAL = "{} gives several rewards at a time ({}), and a task has one: put a wrapper around it that makes them one."
_REAL = (int, float, np.integer, np.floating, np.bool)
Describe = Callable[[Any, gymnasium.Env[Any, Any]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """How an environment that is no TextEnv is played in words: the key `adapter` of a task's `env`.

    Args:
        system_prompt: the conversation begins with it; None: a sentence that lists the actions, if they have names.
        actions: names of the actions of a `Discrete` space in order (None leaves one out), or a list of names for each
            part of a `MultiDiscrete` one. None where the actions are text, or an Enum `actions` of the env names them.
        observation: dotted path of a function (observation, env) → str, which says what is observed.
        observation_key: instead, the entry of `Dict` observations that holds all that is to be said.
        success_key: the entry of `info` that says whether the task was solved when it ends; None: `success` or
            `is_success` where there is one, else `success_above` decides.
        success_above: an episode that terminates with a last reward above this was solved.
        max_turns: every episode is over after so many answers; None: the limit of the registration, or 100.
        separate_starts: True: training and held-out episodes never begin with the same observation. Seeds are redrawn
            until theirs belongs to their side, which gets three in four of all starts, or one.
    """

    system_prompt: str | None = None
    actions: list[str | None] | list[list[str]] | None = None
    observation: str | Describe | None = None
    observation_key: str | None = None
    success_key: str | None = None
    success_above: FiniteFloat = 0.0
    max_turns: PositiveInt | None = None
    separate_starts: bool = False


class AdaptedTextEnv(TextEnv):
    """A Gymnasium environment in its wrappers, played in words.

    An answer that names no action costs a turn without a step of the env. What the env raises on an action of its space
    is an error of the env. Its reward is passed on, and the finite numbers of `info["metrics"]`. `info["action_mask"]`
    of a `Discrete` space, where the env gives one flag for each action, says which are admissible.
    An env whose first observation tells nothing of the seed has the attribute `hidden_state = True`, as a TextEnv.

    Args:
        env: the environment, with its wrappers.
        adapter: how it is said.

    Raises:
        ConfigError: if observations or actions cannot be said in words this way, or its rewards are several.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], adapter: Adapter | None = None) -> None:
        super().__init__()
        self.env, self.adapter = env, adapter or Adapter()
        self._who = type(env.unwrapped).__name__
        rewards = getattr(env.unwrapped, "reward_space", None)  # of environments of the MO-Gymnasium kind
        if rewards is not None and math.prod(rewards.shape or ()) != 1:
            raise ConfigError(SEVERAL.format(self._who, rewards))
        if (limit := self.adapter.max_turns) is not None and limit < 1:
            raise ConfigError.wrong("adapter.max_turns", expected="a positive number of turns", got=limit)
        self._describe = _description(env, self._who, self.adapter)
        self.actions = actions_of(env, self.adapter.actions)
        self.system_prompt = self.adapter.system_prompt
        if self.system_prompt is None and not is_text(env.action_space):
            self.system_prompt = f"Every turn, {self.actions.rule}"
        self.hidden_state = bool(getattr(env.unwrapped, "hidden_state", False))
        self.max_turns = min([*([] if limit is None else [limit]), *step_limits(env)], default=DEFAULT_MAX_TURNS)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin the episode of the seed."""
        super().reset(seed=seed)
        seed = self.episode_seed(seed)
        for draw in range(REDRAWS if self.adapter.separate_starts else 1):
            observation, info = self.env.reset(seed=redraw(seed, draw), options=options)
            self._text = self._said(observation)
            if not self.adapter.separate_starts or on_side_of(seed, self._text):
                break
        else:
            expected = f"false: after {REDRAWS} draws every start of seed {seed} belongs to the other side"
            raise ConfigError.wrong("separate_starts", expected=expected, got=True)
        self._turn = 0
        self._mask = self._mask_of(info)
        return self._text, {**info, **self._listed(), "metrics": {}}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play the action that the answer names."""
        self._turn += 1
        chosen = self.actions.read(action)
        listed = self.admissible()
        counts = action_counts(
            parsed=chosen is not None or read_action(action) is not None,
            admissible=chosen is not None and (listed is None or self.actions.name(chosen) in listed),
            ineffective=self.ineffective(chosen),
        )
        reward, terminated, over, info = 0.0, False, False, dict[str, Any]()
        if chosen is None:
            text = f"That is no action: {self.actions.rule}\n{self._text}"
        else:
            observation, given, terminated, truncated, info = self.env.step(chosen)
            reward, over = self._one_reward(given), bool(terminated or truncated)
            self._mask = self._mask_of(info)
            text = self._text = self._said(observation)
            self.played(chosen)
        info = {**info, **self._listed(), "metrics": {**_numbers(info.get("metrics")), **counts}}
        if not over and self._turn < self.max_turns:
            return text, reward, False, False, info
        info["success"] = self._solved(reward, bool(terminated), info)
        terminated = bool(terminated) or info["success"]
        return text, reward, terminated, not terminated, info

    def admissible(self) -> list[str] | None:
        """The names of the actions that are possible now; None if the env does not say."""
        if self._mask is None or not isinstance(self.actions, NamedActions):
            return None
        first = int(self.env.action_space.start)  # type: ignore[attr-defined]
        return [name for name, number in self.actions.numbers.items() if self._mask[number - first]]

    def ineffective(self, action: Any | None) -> bool | None:
        """Whether an action (None: an answer that names none) is going to change nothing; None if that is not known."""
        return None

    def played(self, action: Any) -> None:
        """Called after each step of the env with the action of its space, for experts."""

    def close(self) -> None:
        """Close the env."""
        self.env.close()

    def _listed(self) -> dict[str, list[str]]:
        """Admissible actions, from which demonstrations choose their detours."""
        names = self.actions.names if (admissible := self.admissible()) is None else admissible
        return {} if names is None else {"admissible_commands": list(names)}

    def _mask_of(self, info: Mapping[str, Any]) -> Any:
        mask: Any = info.get("action_mask")
        return mask if np.shape(mask) == (getattr(self.env.action_space, "n", None),) else None

    def _said(self, observation: Any) -> str:
        text = self._describe(observation, self.env)
        if isinstance(text, str):
            return text
        if self.adapter.observation is not None:
            raise ConfigError.wrong("adapter.observation", expected="a function that returns a text", got=text)
        raise EnvError(f"Expected the observations of {self._who} to be texts, but got {text!r:.80}.")

    def _one_reward(self, reward: Any) -> float:
        try:
            value = float(np.asarray(reward, dtype=float).item())
        except (TypeError, ValueError) as error:
            raise ConfigError(SEVERAL.format(self._who, f"{reward!r:.80}")) from error
        if not math.isfinite(value):
            raise EnvError(f"Expected the reward of {self._who} to be a finite number, but got {reward!r:.80}.")
        return value

    def _solved(self, reward: float, terminated: bool, info: Mapping[str, Any]) -> bool:
        key = self.adapter.success_key
        for name in ("success", "is_success") if key is None else (key,):
            if info.get(name) is not None:
                said = np.asarray(info[name])
                if said.size == 1 and said.dtype.kind in "biuf" and said.item() in (0, 1):
                    return bool(said.item())
                expected = f"an entry of `info` that is true or false, which {name!r} is not (a wrapper can make it so)"
                raise ConfigError.wrong("adapter.success_key", expected=expected, got=info[name])
        if key is not None and key not in info and terminated:
            expected = f"in the `info` with which {self._who} ends ({', '.join(sorted(info))})"
            raise ConfigError.wrong("adapter.success_key", expected=expected, got=key)
        return key is None and terminated and reward > self.adapter.success_above


def _numbers(metrics: Any) -> dict[str, float]:
    """The finite numbers among what an env calls metrics: one that is not opdlight's may mean anything by it."""
    found = metrics.items() if isinstance(metrics, Mapping) else ()
    numbers = {k: float(v) for k, v in found if isinstance(k, str) and isinstance(v, _REAL)}
    return {name: number for name, number in numbers.items() if math.isfinite(number)}


def step_limits(env: gymnasium.Env[Any, Any]) -> list[int]:
    """The step limits of all TimeLimit wrappers around an env."""
    limits = []
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            limits.append(env._max_episode_steps)
        env = env.env
    return limits


def _description(env: gymnasium.Env[Any, Any], who: str, adapter: Adapter) -> Describe:
    """What puts observations into words: the function of the config, one entry of a `Dict`, or nothing for a text."""
    space, path, key = env.observation_space, adapter.observation, adapter.observation_key
    if path is not None and key is not None:
        raise ConfigError.wrong("adapter.observation_key", expected="null beside `adapter.observation`", got=key)
    if path is not None:
        return path if callable(path) else _found(path)
    entries = dict(space.items()) if isinstance(space, spaces.Dict) else {}
    if key is None and len(entries) == 1:
        key = next(iter(entries))
    if key is not None and key in entries and is_text(entries[key]):
        return lambda observation, env: observation[key]
    texts = [name for name, entry in entries.items() if is_text(entry)]
    if adapter.observation_key is not None:
        expected = f"an entry of the observations of {who} that is text (there are: {', '.join(texts) or 'none'})"
        raise ConfigError.wrong("adapter.observation_key", expected=expected, got=key)
    if is_text(space):
        return lambda observation, env: observation
    other = f"; if one entry says everything, `adapter.observation_key` ({', '.join(texts)})" if texts else ""
    raise ConfigError(
        f"{who} observes {described(space)}, which is no text. Add `adapter.observation`, the dotted path of a "
        f"function (observation, env) → str that puts it into words{other}."
    )


def _found(path: str) -> Describe:
    try:
        function = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"Expected `adapter.observation` to be importable, but got {path!r}: {error}") from error
    if not callable(function):
        raise ConfigError.wrong("adapter.observation", expected="the dotted path of a function", got=path)
    return function
