"""Plans of fast-downward, the GPLv3 planner that alfworld installs. Stepping does not need it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

from opdlight.envs.alfworld.game import Play
from opdlight.errors import EnvError

_lock = Lock()  # the translator uses module globals, sys.argv and sys.stdout; the library holds one task


def solve(play: Play) -> list[str]:
    """The commands of a plan from the present state to the goal; raises EnvError where there is none."""
    import fast_downward

    with _lock, _argv_kept():
        _, sas = fast_downward.pddl2sas(play.game.file.domain, _present_problem(play), optimize=True)
        library = _library()
        if not library.solve_sas(sas.encode(), False):
            raise EnvError(f"The planner found no way to: {play.game.goal}.")
        operators = (fast_downward.Operator * library.get_last_plan_length())()
        library.get_last_plan(operators)
        steps = [operator.name.split() for operator in operators]
    return [_command(play, name, args) for name, *args in steps]


@contextmanager
def _argv_kept() -> Iterator[None]:
    """The translator's option parser reads sys.argv and pddl2sas overwrites it."""
    argv = sys.argv
    sys.argv = ["translate.py", "domain", "task"]
    try:
        yield
    finally:
        sys.argv = argv


@cache
def _library() -> Any:
    import fast_downward

    return fast_downward.load_lib()


def _present_problem(play: Play) -> str:
    """The game's PDDL problem with the facts of now as its start."""
    problem = play.game.problem
    objects = [f"{name} - {kind}" for name, kind in problem.types.items()]
    facts = [
        f"({' '.join((predicate, *row))})"
        for predicate, rows in sorted(play.facts.items())
        for row in sorted(rows)
        if not predicate.startswith(("type ", "not_"))
    ]
    goal = play.game.file.problem[play.game.file.problem.index("(:goal") :]
    start = f"(:init (= (total-cost) 0) {' '.join(facts)})"
    return f"(define (problem now) (:domain alfred) (:objects {' '.join(objects)}) {start} {goal}"


def _command(play: Play, name: str, args: list[str]) -> str:
    [action] = [a for a in play.game.problem.actions if a.name == name]
    names = {
        p.lstrip("?"): play.game.entities[a].name
        for p, a in zip(action.parameters, args, strict=True)
        if a in play.game.entities
    }
    return play.game.grammar.commands[name].format(**names)
