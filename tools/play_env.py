"""Play any task in the terminal, or watch its expert play.

python tools/play_env.py opdlight/ToyText-v0 game=Taxi-v4 --seed 3
python tools/play_env.py opdlight/ReasoningGym-v0 dataset=chain_sum 'params={"max_terms": 3}' --expert
python tools/play_env.py opdlight/WebShop-v0 goals=human products=300
python tools/play_env.py opdlight/MiniGrid-v0 level=BabyAI-UnlockPickup-v0 max_turns=60 --expert
python tools/play_env.py corridor:Corridor-v0
python tools/play_env.py Taxi-v4 'adapter={"observation": "taxi_words.describe", "actions": ["south", "north", …]}'

The last two are an environment of your own, which corridor.py in the current folder registers, and one of Gymnasium
that a function of yours in taxi_words.py puts into words.
"""

import ast
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import opdlight.envs  # noqa: F401  (registers the tasks)
from opdlight.config.environments import check_env
from opdlight.envs.base import TextEnv, unknown_name
from opdlight.envs.wrapped import make_text_env
from opdlight.errors import ConfigError, OpdError
from opdlight.system.arguments import argument_parser

_YAML_WORDS = {"true": True, "false": False, "null": None}


def parse_kwargs(pairs: list[str]) -> dict[str, Any]:
    """`["size=4", "game=Taxi-v4"]` → `{"size": 4, "game": "Taxi-v4"}`; a value that is no Python literal is a text."""
    kwargs: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError.wrong("argument", expected="name=value", got=pair)
        try:
            kwargs[name] = _YAML_WORDS[text] if text in _YAML_WORDS else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            kwargs[name] = text
    return kwargs


def make(env_id: str, kwargs: dict[str, Any]) -> TextEnv:
    """The env, or an error that lists the tasks there are or says which argument is wrong."""
    if ":" not in env_id and env_id not in gymnasium.registry:
        raise unknown_name("env", env_id, [name for name in gymnasium.registry if name.startswith("opdlight/")])
    check_env("env", {"id": env_id, **kwargs})
    return make_text_env(env_id, **kwargs)


def play(env: TextEnv, seed: int, answer: Callable[[TextEnv], str]) -> bool:
    """One episode, printed; returns whether it was a success."""
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


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status: 0 after an episode, 1 when the player leaves, 2 on a wrong argument."""
    parser = argument_parser(__doc__)
    parser.add_argument("env", help="the task, such as opdlight/ToyText-v0, or any id or module:id of Gymnasium")
    parser.add_argument("kwargs", nargs="*", default=[], metavar="name=value", help="arguments of the task")
    parser.add_argument(
        "--seed", type=int, default=0, help="which episode (default 0; held-out ones start at 1000000000)"
    )
    parser.add_argument("--expert", action="store_true", help="let the task's expert play")
    options = parser.parse_intermixed_args(arguments)
    if options.seed < 0:
        parser.error("expected --seed to be 0 or more")
    try:
        play(
            make(options.env, parse_kwargs(options.kwargs)), options.seed, ask_expert if options.expert else ask_person
        )
    except (EOFError, KeyboardInterrupt):
        print("\nleft the game")
        return 1
    except OpdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())  # as `python -m` has it: modules of one's own
    sys.exit(main())
