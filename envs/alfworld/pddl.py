"""The rules of a game at work: which actions apply to the present facts, and what they change.

Actions are not grounded in advance: bindings are found by matching preconditions against the facts, so a game loads in
milliseconds and a step needs no planner. Every step matches all actions, so a conjunction is compiled to a Python
function.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Facts = dict[str, set[tuple[str, ...]]]  # predicate → argument tuples that hold
LOOPS = 20  # as many as Python allows in each other
Matcher = Callable[[Facts, Sequence[str]], Iterator[tuple[str, ...]]]  # see `compiled`


@dataclass(frozen=True, slots=True)
class Literal:
    """`predicate(args)` or its negation; arguments that start with `?` are variables."""

    predicate: str
    args: tuple[str, ...]
    positive: bool = True


Conjunction = tuple[Literal, ...]  # in an order that is cheap to match: negations after what binds their variables


@dataclass(frozen=True, slots=True)
class Effect:
    """The literal becomes true if the conjunction `when` held before the action."""

    literal: Literal
    when: Matcher  # given the action's parameters


@dataclass(frozen=True, slots=True)
class Action:
    """An action schema; it applies where one of the `alternatives` holds."""

    name: str
    parameters: tuple[str, ...]
    alternatives: tuple[Matcher, ...]  # given nothing; they yield the parameters
    effects: tuple[Effect, ...]
    moves: bool  # adds and deletes facts of one predicate


@dataclass(frozen=True, slots=True)
class Problem:
    """A parsed domain and problem."""

    actions: tuple[Action, ...]
    types: Mapping[str, str]  # object → type
    facts: Facts  # what holds at the start; never changed
    goal: tuple[Matcher, ...]  # alternatives, given nothing


def type_predicate(kind: str) -> str:
    """Types are facts too; this predicate holds for the objects of a type."""
    return f"type {kind}"


def compiled(literals: Conjunction, given: Sequence[str] = (), wanted: Sequence[str] = ()) -> Matcher:
    """A function of the facts and the values of the variables `given`: nested loops over the facts, one a literal.

    It yields the values of the variables `wanted` for each way to make all literals hold.
    """
    names = {variable: f"v{i}" for i, variable in enumerate(given)}
    lines = ["def match(facts, given):", f" {_row(names.values())} = given"]
    scope: dict[str, Any] = {}
    loops = 0
    for number, literal in enumerate(literals):
        rows: list[str] = []
        tests: list[str] = []
        known = {a: names.get(a, repr(a)) for a in literal.args if a in names or not a.startswith("?")}
        if len(known) < len(set(literal.args)) and loops == LOOPS:
            scope["rest"] = compiled(literals[number:], given=tuple(names), wanted=wanted)
            lines.append(f"{' ' * (loops + 1)}yield from rest(facts, {_row(names.values())})")
            break
        for argument in literal.args:
            if argument in known:
                rows.append(f"r{len(rows)}")
                tests.append(f"{rows[-1]} == {known[argument]}")
            else:
                rows.append(known.setdefault(argument, names.setdefault(argument, f"v{len(names)}")))
        facts = f"facts.get({literal.predicate!r}, ())"
        if len(tests) == len(rows):  # nothing to bind: a check
            values = [known[a] for a in literal.args]
            holding = " == ".join(values) if literal.predicate == "=" else f"{_row(values)} in {facts}"
            tests = [f"({holding}) is {literal.positive}"]
        else:
            loops += 1
            lines.append(f"{' ' * loops}for {_row(rows)} in {facts}:")
        if tests:
            lines.append(f"{' ' * (loops + 1)}if not ({' and '.join(tests)}): {'continue' if loops else 'return'}")
    else:
        lines.append(f"{' ' * (loops + 1)}yield {_row(names[variable] for variable in wanted)}")
    exec("\n".join(lines), scope)
    match: Matcher = scope["match"]
    return match


def _row(names: Iterable[str]) -> str:
    return f"({''.join(f'{name}, ' for name in names)})"


def holds(alternatives: Iterable[Matcher], facts: Facts, given: Sequence[str] = ()) -> bool:
    """True if one of the alternatives has a solution."""
    return any(next(match(facts, given), None) is not None for match in alternatives)


def applicable(action: Action, facts: Facts) -> Iterator[tuple[str, ...]]:
    """The distinct argument tuples for which the action applies."""
    seen = set()
    for match in action.alternatives:
        for args in match(facts, ()):
            if args not in seen and not (action.moves and _is_idle(action, args, facts)):
                seen.add(args)
                yield args


def changes(action: Action, args: tuple[str, ...], facts: Facts) -> list[tuple[str, tuple[str, ...], bool]]:
    """What the action makes true or false: (predicate, arguments, positive)."""
    binding = dict(zip(action.parameters, args, strict=True))
    fired = [e.literal for e in action.effects if holds([e.when], facts, args)]
    effects = [(f.predicate, tuple(binding.get(a, a) for a in f.args), f.positive) for f in fired]
    added = {(predicate, values) for predicate, values, positive in effects if positive}
    return [e for e in effects if e[2] or e[:2] not in added]  # PDDL: what is deleted and added stays true


def _is_idle(action: Action, args: tuple[str, ...], facts: Facts) -> bool:
    """True for a move to where one is: fast-downward drops such actions, so ALFWorld does not offer them."""
    return all((values in facts.get(p, ())) == positive for p, values, positive in changes(action, args, facts))
