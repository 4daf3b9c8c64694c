"""Environments as Gymnasium makes them, as text environments: inside the wrappers of their registration or author."""

from collections.abc import Mapping
from typing import Any

import gymnasium

from opdlight.envs.adapter import AdaptedTextEnv, Adapter, step_limits
from opdlight.envs.base import TextEnv, unknown_name
from opdlight.errors import ConfigError


class WrappedTextEnv(TextEnv):
    """A TextEnv inside Gymnasium wrappers. Attributes such as `system_prompt` are those of the outermost that has them.

    A limit that a wrapper sets (`max_episode_steps`) truncates: the episode is over without success, unless the task
    ended in the same step.
    """

    def __init__(self, env: gymnasium.Env[str, str]) -> None:
        super().__init__()
        self.env = env
        self.observation_space, self.action_space = env.observation_space, env.action_space
        for name in TextEnv.__annotations__:  # metadata, system_prompt, fresh_prompt, …
            setattr(self, name, env.get_wrapper_attr(name))
        self.max_turns = min([self.max_turns, *step_limits(env)])

    @property
    def unwrapped(self) -> gymnasium.Env[str, str]:
        """The environment without its wrappers."""
        return self.env.unwrapped

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin an episode in the wrapped env."""
        return self.env.reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """One step through every wrapper."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if truncated and not terminated:
            info.setdefault("success", False)
        return observation, float(reward), terminated, truncated and not terminated, info

    def expert_action(self) -> str:
        """The answer of the expert of the wrapped env."""
        action: str = self.env.get_wrapper_attr("expert_action")()
        return action

    def reply(self, command: str) -> str:
        """The answer that plays a command in the wrapped env."""
        text: str = self.env.get_wrapper_attr("reply")(command)
        return text

    def prepare(self, seed: int) -> None:
        """Pass the hint to the wrapped env."""
        self.env.get_wrapper_attr("prepare")(seed)

    def close(self) -> None:
        """Close the wrapped env."""
        self.env.close()


def text_env(env: gymnasium.Env[Any, Any], adapter: Adapter | None = None) -> TextEnv:
    """The env with everything that a TextEnv has, whatever wrappers it came in; another env is played in words.

    Args:
        env: any environment.
        adapter: how one that is no TextEnv is said in words.

    Raises:
        ConfigError: if the env cannot be said in words, or is a TextEnv and there is an `adapter`.
    """
    if not isinstance(getattr(env, "unwrapped", None), TextEnv):
        if not isinstance(env, gymnasium.Env):
            raise ConfigError(f"Expected a gymnasium.Env, but got {type(env).__name__}.")
        return AdaptedTextEnv(env, adapter)
    if adapter is not None:
        expected = f"left out, because {type(env.unwrapped).__name__} is a text environment"
        raise ConfigError.wrong("adapter", expected=expected, got=adapter)
    return env if isinstance(env, TextEnv) else WrappedTextEnv(env)


def make_text_env(env_id: str, *, adapter: Mapping[str, Any] | None = None, **arguments: Any) -> TextEnv:
    """`gymnasium.make` for tasks: with the wrappers and limits of the registration, without its passive checker.

    Args:
        env_id: Gymnasium's id.
        adapter: arguments of `Adapter`, for an env that is no TextEnv.
        **arguments: of the environment.

    Raises:
        ConfigError: if there is no such environment, it does not take an argument, it cannot be said in words, or its
            package is missing.
    """
    for name in adapter or ():
        if name not in Adapter.__dataclass_fields__:
            raise unknown_name("adapter", name, Adapter.__dataclass_fields__)
    how = None if adapter is None else Adapter(**adapter)
    try:
        return text_env(gymnasium.make(env_id, disable_env_checker=True, **arguments), how)
    except (gymnasium.error.Error, ModuleNotFoundError, TypeError) as error:  # TypeError: an argument it does not take
        raise ConfigError(f"Cannot make the environment {env_id!r}: {error}") from error
