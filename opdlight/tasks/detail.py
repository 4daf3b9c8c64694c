"""One task in full: what it is, what the student sees, what its expert does, and which keys can be set."""

import inspect
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from opdlight.config.composition import CONF
from opdlight.config.environments import find_env
from opdlight.config.help import commented_keys, lineage, plain
from opdlight.envs.base import TextEnv
from opdlight.envs.wrapped import make_text_env
from opdlight.errors import NoExpertError, OpdError
from opdlight.tasks.found import FoundOption, FoundTask, task_config
from opdlight.tasks.table import turns_cell

SHOWN = 600  # characters of an observation of the expert's episode


def detail(option: FoundOption, tasks: list[FoundTask], own: Path | None) -> Iterator[str]:
    """The lines, each as soon as it is known; making an environment may take a moment."""
    yield "\n".join(option.comment)
    folder = f" --config-dir {shlex.quote(str(own))}" if option.own else ""
    yield f"{option.file}: python -m opdlight.train{folder} task={option.name}"
    others = [task.name for task in option.tasks if task not in tasks]
    if others:
        yield f"other tasks of it: {', '.join(f'{option.name}.{name}' for name in others)}"
    for task in tasks:
        yield from ["", f"── {task.name} ──", *_facts(task), ""]
        yield from _episode(task, f"{option.name}.{task.name}")
        yield from ["", "keys, and what they are now (those with a plus are not in the file):"]
        yield from _keys(option, task, own)


def _facts(task: FoundTask) -> Iterator[str]:
    about = task.facts.about
    yield f"environment  {task.env['id']}"
    yield f"turns        {turns_cell(task.facts)}"
    yield f"source       {about.source or '?'}"
    yield f"licence      {about.licence or '?'}"
    yield f"expert       {'yes' if about.expert else 'no'}"
    yield f"missing here {', '.join(about.missing) or 'nothing'}"


def _episode(task: FoundTask, name: str) -> Iterator[str]:
    """What the student sees first, and what the expert does with it; `name` is that of the task for `play`."""
    about, arguments = task.facts.about, dict(task.env)
    if unset := [key for key in about.missing if key.startswith("env.")]:
        yield f"no episode can be shown without {', '.join(unset)}"
        return
    if about.slow:
        yield f"no episode is shown, because making the environment {about.slow}: python -m opdlight.tasks play {name}"
        return
    try:
        env = make_text_env(arguments.pop("id"), **arguments)
    except OpdError as error:
        yield f"no episode can be shown: {error}"
        return
    try:
        if env.training_episodes is None:
            yield "episodes: a new one for every seed"
        else:
            yield f"episodes: {env.training_episodes} to train on, {env.held_out_episodes} held out"
        if env.system_prompt:
            yield f"\nsystem prompt:\n{_indented(env.system_prompt)}"
        yield f"\nfirst observation of seed 0:\n{_indented(env.reset(seed=0)[0])}"
        yield from _demonstration(env)
    finally:
        env.close()


def _demonstration(env: TextEnv) -> Iterator[str]:
    try:
        action = env.expert_action()
    except NoExpertError as error:
        yield f"\nno expert: {error}"
        return
    yield "\nits expert:"
    while True:
        observation, reward, terminated, truncated, info = env.step(action)
        yield _indented(f"> {action}\n{observation if len(observation) <= SHOWN else observation[:SHOWN] + '…'}")
        if terminated or truncated:
            yield f"    reward {float(reward):g}, {'success' if info['success'] else 'no success'}"
            return
        action = env.expert_action()


def _keys(option: FoundOption, task: FoundTask, own: Path | None) -> Iterator[str]:
    """`key=value` of what the file of the option sets and of what it leaves out, with the comments of the file."""
    prefix = f"task.tasks.{task.name}"
    folder = own / "task" if option.own and own is not None else CONF / "task"
    comments = dict(pair for file in lineage(folder, option.file) for pair in commented_keys(file))
    node: Any = OmegaConf.to_container(OmegaConf.select(task_config(option.name, own), prefix))
    env = node.pop("env")
    for name, value in [*((f"env.{n}", v) for n, v in env.items()), *node.items()]:
        if not name.startswith("_"):
            if comment := comments.get(f"tasks.{task.name}.{name}"):
                yield f"    # {comment}"
            yield f"    {prefix}.{name}={plain(value)}"
    spec, creator = find_env(f"{prefix}.env.id", env["id"])
    for name, parameter in inspect.signature(creator).parameters.items():
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD) and name not in env:
            usual = spec.kwargs.get(name, parameter.default)
            shown = "<value>" if usual is parameter.empty else plain(list(usual) if isinstance(usual, tuple) else usual)
            yield f"    +{prefix}.env.{name}={shown}"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())
