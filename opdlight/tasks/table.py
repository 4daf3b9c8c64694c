"""The tables of tasks and environments."""

import inspect
import re
from collections.abc import Iterable
from typing import Any

import gymnasium
from rich import box
from rich.table import Column, Table

from opdlight.config.environments import find_env
from opdlight.system.console import narrow, table
from opdlight.tasks.found import Facts, FoundOption, env_facts

PREFIX = "opdlight/"  # of the ids of opdlight's environments
LEGEND = (
    "turns: the most of an episode. episodes: training + held out; ∞: a new one for every seed; finite: counted by "
    "`python -m opdlight.tasks <task>`, which shows a task in full.\n"
    "missing here: what `task=<task>` needs beside it. Models are those of model=lab unless you choose others."
)
_PLAIN: dict[str, Any] = {"box": box.SIMPLE_HEAD, "show_edge": False, "padding": (0, 1, 0, 0)}


def task_table(options: Iterable[FoundOption]) -> Table:
    """A row for each option of the group `task`; what its tasks have in common is said once."""
    task = Column("task", no_wrap=True, overflow="fold")
    facts = ("environment", "turns", "episodes", "source", "licence", "expert", "missing here")
    shown = table(task, *facts, **_PLAIN)
    for option in options:
        names = _joined(short_id(str(task.env["id"])) for task in option.shown)
        cells = _cells([task.facts for task in option.shown])
        shown.add_row(option.name, names, *cells[:-1], option.error or cells[-1])
    return shown


def environment_table() -> Table:
    """A row for each registered environment of opdlight, with its arguments at their defaults."""
    shown = table(
        Column("environment", no_wrap=True, overflow="fold"), "what it is", "turns", "source", "licence", "expert",
        **_PLAIN,
    )  # fmt: skip
    for name in registered():
        turns, _, source, licence, expert, _ = _cells([env_facts("env", {"id": name})])
        shown.add_row(name, purpose(name), turns, source, licence, expert)
    return shown


def short_id(env_id: str) -> str:
    """The id without what those of opdlight have in common: opdlight/ALFWorld-v0 → ALFWorld."""
    return env_id.removeprefix(PREFIX).removesuffix("-v0") if env_id.startswith(PREFIX) else env_id


def registered() -> list[str]:
    """The ids of opdlight's environments."""
    return sorted(name for name in gymnasium.registry if name.startswith(PREFIX))


def purpose(env_id: str) -> str:
    """The first clause of what the class of an environment says of itself."""
    text = " ".join((inspect.getdoc(find_env("env.id", env_id)[1]) or "").partition("\n\n")[0].split())
    return re.split(r"[:;]|\.( |$)", text)[0]


def turns_cell(facts: Facts) -> str:
    """The most turns of an episode, as far as they are known."""
    return "?" if facts.turns is None else str(facts.turns)


def episodes_cell(facts: Facts) -> str:
    """The numbers of training and held-out episodes, as far as they are known."""
    if facts.episodes is not None:
        return f"{facts.episodes[0]} + {facts.episodes[1]}"
    return {None: "?", False: "∞", True: "finite"}[facts.about.finite]


def _cells(facts: list[Facts]) -> list[str]:
    abouts = [fact.about for fact in facts]
    return [
        _joined(map(turns_cell, facts)),
        _joined(map(episodes_cell, facts)),
        _joined(about.source or "?" for about in abouts),
        _joined(about.licence or "?" for about in abouts),
        _joined("yes" if about.expert else "no" for about in abouts),
        _joined(what for about in abouts for what in about.missing) or "nothing",
    ]


def _joined(texts: Iterable[str]) -> str:
    """The different ones among the texts, in order; on a narrow terminal below each other."""
    return ("\n" if narrow() else ", ").join(dict.fromkeys(texts))
