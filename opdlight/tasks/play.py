"""Play a task in the terminal, or watch its expert."""

import ast
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opdlight.config.environments import check_env
from opdlight.envs.base import TextEnv
from opdlight.envs.wrapped import make_text_env
from opdlight.errors import ConfigError, NoExpertError
from opdlight.system.arguments import argument_parser
from opdlight.system.console import progress
from opdlight.tasks.found import add_config_dir, find_env_config, own_folder

HELP = """Play a task in the terminal, or watch its expert play.

A task is an option of the configuration (with a dot one of several: agent_math.sums), or any Gymnasium id; one of your
own is module:id, and the module lies in the current folder. An environment without words needs an `adapter`.

python -m opdlight.tasks play alfworld --expert
python -m opdlight.tasks play frozen_lake size=8 --seed 3
python -m opdlight.tasks play opdlight/ToyText-v0 game=Taxi-v4
python -m opdlight.tasks play babyai level=BabyAI-UnlockPickup-v0 max_turns=60 --expert
python -m opdlight.tasks play corridor:Corridor-v0
python -m opdlight.tasks play Taxi-v4 'adapter={"observation": "taxi_words.describe", "actions": ["south", "north", …]}'
"""
_YAML_WORDS = {"true": True, "false": False, "null": None}


def main(arguments: list[str]) -> int:
    """`python -m opdlight.tasks play …`; returns the exit status: 0 after an episode, 1 when the player leaves."""
    parser = argument_parser(HELP, "python -m opdlight.tasks play")
    parser.add_argument("task", help="such as alfworld, opdlight/ToyText-v0, or module:id of your own")
    parser.add_argument("changes", nargs="*", metavar="name=value", help="arguments of the environment")
    parser.add_argument("--seed", type=int, default=0, help="the episode (default 0; held-out ones from 1000000000 on)")
    parser.add_argument("--expert", action="store_true", help="let the task's expert play")
    add_config_dir(parser)
    options = parser.parse_intermixed_args(arguments)
    if options.seed < 0:
        raise ConfigError.wrong("--seed", expected="0 or more", got=options.seed)
    with progress("making the environment", log=False):  # some import packages for seconds
        env = make(options.task, parse_changes(options.changes), own_folder(options.config_dir))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # else it would end this process without close()
    try:
        play(env, options.seed, ask_expert if options.expert else ask_person)
        sys.stdout.flush()
    except NoExpertError as error:
        raise NoExpertError(f"{error} Without --expert you play.") from error
    except (EOFError, KeyboardInterrupt):
        print("\nleft the game")
        return 1
    except BrokenPipeError:  # `… | head`. SIGPIPE stays ignored: an environment may have a connection of its own
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        signal.signal(signal.SIGINT, before)
        env.close()
    return 0


def parse_changes(pairs: list[str]) -> dict[str, Any]:
    """`["size=4", "game=Taxi-v4"]` → `{"size": 4, "game": "Taxi-v4"}`; a value that is no Python literal is a text."""
    changes: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError.wrong("argument", expected="name=value", got=pair)
        try:
            changes[name] = _YAML_WORDS[text] if text in _YAML_WORDS else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            changes[name] = text
    return changes


def make(task: str, changes: dict[str, Any], own: Path | None) -> TextEnv:
    """The environment of a task or id with changed arguments.

    Raises:
        ConfigError: if there is none of that name, with those that there are, or an argument is wrong.
    """
    env = {**find_env_config(task, own), **changes}
    check_env("env", env)
    return make_text_env(env.pop("id"), **env)


def play(env: TextEnv, seed: int, answer: Callable[[TextEnv], str]) -> bool:
    """One episode, printed; returns whether it was a success."""
    with progress("beginning the episode", log=False):
        observation, _ = env.reset(seed=seed)
    if env.system_prompt:
        print(f"{env.system_prompt}\n")
    total, metrics = 0.0, dict[str, float]()
    while True:
        print(observation)
        observation, reward, terminated, truncated, info = env.step(answer(env))
        total += float(reward)
        for name, value in info["metrics"].items():
            metrics[name] = metrics.get(name, 0.0) + value
        if terminated or truncated:
            break
    print(observation)
    how = "success" if info["success"] else "out of turns" if truncated else "failure"
    counters = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
    print(f"\n{how}: reward {total:g} ({counters})")
    return bool(info["success"])


def ask_person(env: TextEnv) -> str:
    """Read one line."""
    return input("> ")


def ask_expert(env: TextEnv) -> str:
    """Show what the expert answers."""
    action = env.expert_action()
    print(f"> {action}")
    return action
