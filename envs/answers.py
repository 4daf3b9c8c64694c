"""What an environment returns, checked: text that can be encoded, finite numbers, and success at the end."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from opdlight.envs.base import TextEnv
from opdlight.errors import ConfigError, EnvError, MissingDependencyError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An environment's answer to a reset or an action; plain values, which another process can send."""

    observation: str = ""
    system_prompt: str | None = None  # of a reset: the conversation begins with it
    fresh_prompt: bool = False  # of a reset: each observation is a complete prompt
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    success: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    error: Exception | None = None  # what the environment raised; the episode is over


def reset(env: TextEnv, seed: int) -> Answer:
    """Reset an environment; raises EnvError if what it returns breaks its contract."""
    observation = _text(env.reset(seed=seed)[0])
    system_prompt = None if env.system_prompt is None else _text(env.system_prompt, "system prompt")
    return Answer(observation=observation, system_prompt=system_prompt, fresh_prompt=bool(env.fresh_prompt))


def step(env: TextEnv, action: str) -> Answer:
    """Step an environment; raises EnvError if what it returns breaks its contract."""
    observation, reward, terminated, truncated, info = env.step(action)
    if (terminated or truncated) and "success" not in info:
        raise EnvError(f'Expected info["success"] on the last step of {type(env).__name__}, but got {sorted(info)}.')
    return Answer(
        observation=_text(observation),
        reward=_finite(reward, "the reward"),
        terminated=bool(terminated),
        truncated=bool(truncated),
        success=bool(info.get("success", False)),
        metrics={
            _text(name, "name of a metric"): _finite(value, f"the metric {name!r}")
            for name, value in info.get("metrics", {}).items()
        },
    )


def attempt(env: TextEnv, call: Callable[[TextEnv], Answer]) -> Answer:
    """`call(env)`. An error of the environment becomes `Answer.error`, and it is closed: its state is unknown.

    Raises:
        ConfigError, MissingDependencyError: as the environment did: they would end every episode.
    """
    try:
        return call(env)
    except (ConfigError, MissingDependencyError):
        raise
    except Exception as error:  # noqa: BLE001  environments may fail in any way
        try:
            env.close()
        except Exception as close_error:
            log.warning("A failed environment (%s) did not close.", type(env).__name__, exc_info=close_error)
        return Answer(error=error)


def _text(text: Any, what: str = "observation") -> str:
    if not isinstance(text, str):
        raise EnvError(f"Expected the {what} to be a string, but got {type(text).__name__}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which no tokenizer can encode
        raise EnvError(f"Expected the {what} to be text that UTF-8 can encode: {error}.") from error
    return str(text)  # templates and tokenizers may treat subclasses of str differently


def _finite(number: Any, what: str) -> float:
    if not math.isfinite(value := float(number)):
        raise EnvError(f"Expected {what} to be a finite number, but got {value}.")
    return value
