"""The arguments of a Gymnasium environment against the signature of its class: the schema of a task's `env`."""

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

from opdlight.bounds import PositiveInt
from opdlight.config.checks import check_arguments, locate
from opdlight.config.imports import import_env_module, import_module
from opdlight.config.values import check_value
from opdlight.envs.adapter import Adapter
from opdlight.errors import ConfigError


def check_env(key: str, env: Mapping[str, Any]) -> None:
    """Check the id and the arguments of the environment that the config names at `key`.

    Raises:
        ConfigError: naming the key: no id, no such environment, its module cannot be imported, or an argument that
            its class does not take, lacks or has in another type.
    """
    name = env.get("id")
    spec, creator = find_env(f"{key}.id", name)
    given = {k: v for k, v in env.items() if k not in ("id", "max_episode_steps", "adapter")}
    if "adapter" in env:  # opdlight's own
        check_value(f"{key}.adapter", env["adapter"], Adapter | None)
        path = (env["adapter"] or {}).get("observation")
        if isinstance(path, str):
            locate(f"{key}.adapter.observation", path)
    if "max_episode_steps" in env:  # Gymnasium's own
        check_value(f"{key}.max_episode_steps", env["max_episode_steps"], PositiveInt | None)
    check_arguments(key, creator, {**spec.kwargs, **given}, name=str(name))


def find_env(key: str, name: object) -> tuple[EnvSpec, Callable[..., Any]]:
    """The registration of the environment that the config names at `key`, and the class or function that makes it.

    Raises:
        ConfigError: naming the key: no id, no such environment, or its module cannot be imported.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError.wrong(key, expected="the Gymnasium id of an environment", got=name)
    try:
        import_env_module(key, name)
        spec = gymnasium.envs.registration._find_spec(name)
        if isinstance(spec.entry_point, str):
            import_module(key, name, spec.entry_point.partition(":")[0])
        return spec, spec.entry_point if callable(spec.entry_point) else load_env_creator(str(spec.entry_point))
    except (gymnasium.error.Error, ImportError, AttributeError) as error:
        package = "" if ":" in name else " One that a package or file of yours registers is named module:id."
        raise ConfigError(f"Cannot find the environment of `{key}`, {name!r}: {error}{package}") from error
