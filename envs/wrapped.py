"""Text environments as Gymnasium makes them: inside the wrappers that their registration or their author asks for."""

from typing import Any

import gymnasium

from opdlight.envs.base import TextEnv
from opdlight.errors import ConfigError, EnvError


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
        self.max_turns = min([self.max_turns, *_limits(env)])

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

    def prepare(self, seed: int) -> None:
        """Pass the hint to the wrapped env."""
        self.env.get_wrapper_attr("prepare")(seed)

    def close(self) -> None:
        """Close the wrapped env."""
        self.env.close()


def text_env(env: gymnasium.Env[Any, Any]) -> TextEnv:
    """The env with everything that a TextEnv has, whatever wrappers it came in.

    Raises:
        EnvError: if there is no TextEnv inside.
    """
    if isinstance(env, TextEnv):
        return env
    if not isinstance(getattr(env, "unwrapped", None), TextEnv):
        inside = type(getattr(env, "unwrapped", env)).__name__
        raise EnvError(f"Expected an environment of text (opdlight.envs.base.TextEnv), but got {inside}.")
    return WrappedTextEnv(env)


def make_text_env(env_id: str, **arguments: Any) -> TextEnv:
    """`gymnasium.make` for tasks: with the wrappers and limits of the registration, without its passive checker.

    Raises:
        ConfigError: if there is no such environment, it is no TextEnv, or its package is missing.
    """
    try:
        return text_env(gymnasium.make(env_id, disable_env_checker=True, **arguments))
    except (gymnasium.error.Error, ModuleNotFoundError, EnvError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"Cannot make the environment {env_id!r}: {error}") from error


def _limits(env: gymnasium.Env[str, str]) -> list[int]:
    """The step limits of all TimeLimit wrappers around an env."""
    limits = []
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            limits.append(env._max_episode_steps)
        env = env.env
    return limits
