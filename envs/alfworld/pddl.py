"""The rules of a game at work: which actions apply to the present facts, and what they change.

Actions are not grounded in advance: bindings are found by matching preconditions against the facts, so a game loads in
milliseconds and a step needs no planner.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

Facts = dict[str, set[tuple[str, ...]]]  # predicate → argument tuples that hold
Binding = dict[str, str]  # variable → object


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
    when: Conjunction


@dataclass(frozen=True, slots=True)
class Action:
    """An action schema; it applies where one of the `alternatives` holds."""

    name: str
    parameters: tuple[str, ...]
    alternatives: tuple[Conjunction, ...]
    effects: tuple[Effect, ...]
    moves: bool  # adds and deletes facts of one predicate


@dataclass(frozen=True, slots=True)
class Problem:
    """A parsed domain and problem."""

    actions: tuple[Action, ...]
    types: Mapping[str, str]  # object → type
    facts: Facts  # what holds at the start; never changed
    goal: tuple[Conjunction, ...]


def type_predicate(kind: str) -> str:
    """Types are facts too; this predicate holds for the objects of a type."""
    return f"type {kind}"


def solutions(literals: Conjunction, facts: Facts, binding: Binding) -> Iterator[Binding]:
    """Every extension of `binding` under which all literals hold. Yields one dict that is changed in place: copy it."""
    if not literals:
        yield binding
        return
    head, rest = literals[0], literals[1:]
    args = tuple([binding.get(a, a) for a in head.args])
    if not any(a.startswith("?") for a in args):
        known = args[0] == args[1] if head.predicate == "=" else args in facts.get(head.predicate, ())
        if known == head.positive:
            yield from solutions(rest, facts, binding)
        return
    for row in facts.get(head.predicate, ()):
        new: Binding = {}
        if all(a == v or (a.startswith("?") and new.setdefault(a, v) == v) for a, v in zip(args, row, strict=True)):
            binding.update(new)
            yield from solutions(rest, facts, binding)
            for name in new:
                del binding[name]


def holds(alternatives: Iterable[Conjunction], facts: Facts) -> bool:
    """True if one of the alternatives has a solution."""
    return any(next(solutions(c, facts, {}), None) is not None for c in alternatives)


def applicable(action: Action, facts: Facts) -> Iterator[tuple[str, ...]]:
    """The distinct argument tuples for which the action applies."""
    seen = set()
    for conjunction in action.alternatives:
        for binding in solutions(conjunction, facts, {}):
            args = tuple([binding[p] for p in action.parameters])
            if args not in seen and not (action.moves and _is_idle(action, args, facts)):
                seen.add(args)
                yield args


def changes(action: Action, args: tuple[str, ...], facts: Facts) -> list[tuple[str, tuple[str, ...], bool]]:
    """What the action makes true or false: (predicate, arguments, positive)."""
    binding = dict(zip(action.parameters, args, strict=True))
    fired = [e.literal for e in action.effects if next(solutions(e.when, facts, dict(binding)), None) is not None]
    effects = [(f.predicate, tuple(binding.get(a, a) for a in f.args), f.positive) for f in fired]
    added = {(predicate, values) for predicate, values, positive in effects if positive}
    return [e for e in effects if e[2] or e[:2] not in added]  # PDDL: what is deleted and added stays true


def _is_idle(action: Action, args: tuple[str, ...], facts: Facts) -> bool:
    """True for a move to where one is: fast-downward drops such actions, so ALFWorld does not offer them."""
    return all((values in facts.get(p, ())) == positive for p, values, positive in changes(action, args, facts))
