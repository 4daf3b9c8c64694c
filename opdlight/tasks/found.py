"""Which tasks there are, and what is known of each without making its environment or loading a model."""

import inspect
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from opdlight.config.composition import CONF, compose
from opdlight.config.environments import find_env
from opdlight.config.help import leading_comment
from opdlight.config.resume import quoted
from opdlight.envs.base import About, TextEnv, unknown_name
from opdlight.errors import ConfigError

MISSING = "???"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of an environment with certain arguments.

    Args:
        turns: the most that an episode has; None: not known before the environment is made.
        episodes: numbers of training and held-out episodes; None: not known before, or unlimited (`about.finite`).
        about: source, licence, expert, what is missing.
    """

    turns: int | None
    episodes: tuple[int, int] | None
    about: About


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTask:
    """One task of an option of the group `task`.

    Args:
        name: in its mixture.
        env: id and arguments; what has to be given is left out.
        trained: whether it is trained on, not only evaluated.
        facts: of its environment, and what else is missing to run it here.
    """

    name: str
    env: dict[str, Any]
    trained: bool
    facts: Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundOption:
    """One file of the group `task`, which `task=<name>` chooses.

    Args:
        name: of the file, without .yaml.
        file: where it lies.
        own: whether it is the user's.
        comment: its first lines.
        tasks: those of its mixture; empty if it is wrong.
        error: what is wrong with it.
    """

    name: str
    file: Path
    own: bool
    comment: list[str]
    tasks: list[FoundTask]
    error: str = ""

    @property
    def shown(self) -> list[FoundTask]:
        """The tasks that it trains on; all, if it trains on none."""
        return [task for task in self.tasks if task.trained] or self.tasks


def add_config_dir(parser: ArgumentParser) -> None:
    """The option that `own_folder` takes."""
    about = "a folder of your own with task/<name>.yaml in it (default: conf, or the current folder)"
    parser.add_argument("--config-dir", type=Path, help=about)


def own_folder(given: Path | None) -> Path | None:
    """The folder of configurations of the user's: the given one, else `conf` or `.` if a folder `task` lies in it.

    Raises:
        ConfigError: if the given folder is not there.
    """
    if given is not None:
        if not given.is_dir():
            raise ConfigError.wrong("--config-dir", expected="a folder that exists", got=str(given))
        return given
    nearby = (Path("conf"), Path("."))
    return next((f for f in nearby if (f / "task").is_dir() and f.resolve() != CONF.resolve()), None)


def task_files(own: Path | None) -> dict[str, Path]:
    """Option of the group `task` → its file, the user's first; of two with one name that of opdlight, as in Hydra."""
    shipped = {file.stem: file for file in sorted((CONF / "task").glob("*.yaml"))}
    users = {} if own is None else {file.stem: file for file in sorted((own / "task").glob("*.yaml"))}
    return {name: file for name, file in users.items() if name not in shipped} | shipped


def find_option(name: str, own: Path | None) -> FoundOption:
    """The option `task=<name>`.

    Raises:
        ConfigError: if there is none; what is wrong inside of it is its `error`.
    """
    files = task_files(own)
    if name not in files:
        raise unknown_name("task", name, files)
    file = files[name]
    mine = own is not None and file.is_relative_to(own)
    try:
        comment, tasks, error = leading_comment(file), read_tasks(name, own), ""
    except (ConfigError, UnicodeDecodeError) as wrong:
        comment, tasks, error = [], [], str(wrong)
    return FoundOption(name=name, file=file, own=mine, comment=comment, tasks=tasks, error=error)


def find_tasks(name: str, own: Path | None) -> tuple[FoundOption, list[FoundTask]]:
    """The option `name`, and the tasks that are meant: those that it trains on, or the one of `option.task`.

    Raises:
        ConfigError: if there is none of that name, or something is wrong in its file.
    """
    option_name, dot, part = name.partition(".")
    option = find_option(option_name, own)
    if option.error:
        raise ConfigError(f"`task={option_name}`: {option.error}")
    tasks = {task.name: task for task in option.tasks}
    if dot and part not in tasks:
        raise unknown_name("task", name, [f"{option_name}.{task}" for task in tasks])
    return option, [tasks[part]] if dot else option.shown


def find_env_config(name: str, own: Path | None) -> dict[str, Any]:
    """Id and arguments of the environment of a task, or the id alone where `name` is one.

    Raises:
        ConfigError: if there is none of that name, or it stands for several tasks.
    """
    if ":" in name or name in gymnasium.registry:
        return {"id": name}
    if "/" in name:
        raise unknown_name("env", name, [id_ for id_ in gymnasium.registry if id_.startswith("opdlight/")])
    option, tasks = find_tasks(name, own)
    if len(tasks) > 1:
        names = ", ".join(f"{option.name}.{task.name}" for task in tasks)
        raise ConfigError.wrong("task", expected=f"one task ({names})", got=name)
    return dict(tasks[0].env)


def read_tasks(option: str, own: Path | None) -> list[FoundTask]:
    """The tasks of an option, where it names models of the chosen `model`, with those of lab.

    Raises:
        ConfigError: if it cannot be composed, or an environment cannot be found.
    """
    config = task_config(option, own)
    return [_read_task(config, str(name)) for name in config.task.tasks]


def task_config(option: str, own: Path | None) -> DictConfig:
    """The configuration of an option, as `task`, beside the `model` lab.

    Raises:
        ConfigError: if it cannot be composed, or holds no tasks.
    """
    config = compose(None, None, ["+model=lab", quoted("+task", option)], extra=own)
    tasks = OmegaConf.select(config, "task.tasks")
    if not isinstance(tasks, DictConfig) or not tasks:
        raise ConfigError.wrong("task.tasks", expected="at least one task", got=tasks)
    return config


def _read_task(config: DictConfig, name: str) -> FoundTask:
    key = f"task.tasks.{name}"
    task = OmegaConf.select(config, key)
    try:
        env = OmegaConf.to_container(task.env, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        raise ConfigError(f"Cannot resolve `{key}.env`: {str(error).splitlines()[0]}") from error
    if not isinstance(env, dict):
        raise ConfigError.wrong(f"{key}.env", expected="the id and the arguments of an environment", got=env)
    given = {str(k): v for k, v in env.items() if v != MISSING}
    trained = task.get("weight", 1) != 0
    missing = [f"env.{k!s}" for k, v in env.items() if v == MISSING]
    facts = env_facts(f"{key}.env", given)
    missing += ["teacher"] if trained and not _has_teacher(task) else []
    about = replace(facts.about, missing=(*missing, *facts.about.missing))
    return FoundTask(name=name, env=given, trained=trained, facts=replace(facts, about=about))


def _has_teacher(task: DictConfig) -> bool:
    try:
        return not OmegaConf.is_missing(task, "teacher") and task.get("teacher") is not None
    except OmegaConfBaseException:  # ${model.teachers.…} of a model that has no such teacher
        return False


def env_facts(key: str, env: Mapping[str, Any]) -> Facts:
    """What is known of the environment with the id and the arguments that the config has at `key`.

    Raises:
        ConfigError: if it cannot be found.
    """
    spec, creator = find_env(f"{key}.id", env.get("id"))
    arguments = {**spec.kwargs, **{k: v for k, v in env.items() if k not in ("id", "max_episode_steps", "adapter")}}
    registered = env.get("max_episode_steps") or spec.max_episode_steps
    if not (isinstance(creator, type) and issubclass(creator, TextEnv)):  # an adapter puts it into words
        set_here = [n for n in ((env.get("adapter") or {}).get("max_turns"), registered) if isinstance(n, int)]
        about = About(source=creator.__module__.partition(".")[0], licence="of its package", expert=False)
        return Facts(turns=min(set_here, default=None), episodes=None, about=about)
    parameter = inspect.signature(creator).parameters.get("max_turns")
    usual = creator.max_turns if parameter is None or parameter.default is parameter.empty else parameter.default
    limits = (arguments.get("max_turns", usual), registered)
    sides = (creator.training_episodes, creator.held_out_episodes)
    return Facts(
        turns=min(limit for limit in limits if isinstance(limit, int)),
        episodes=None if sides[0] is None or sides[1] is None else (sides[0], sides[1]),
        about=creator.about(**arguments),
    )
