"""Reads PDDL: what ALFWorld's domain uses (typing, and/or/not/exists/=, conditional effects); the rest is refused."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import chain, count, product
from typing import Any

from opdlight.envs.alfworld.pddl import Action, Conjunction, Effect, Facts, Literal, Problem, compiled, type_predicate
from opdlight.errors import EnvError

Tree = list[Any]  # nested lists of strings
UNBINDABLE = (3, 0, 0)
_serial = count()


def parse_problem(domain: str, problem: str) -> Problem:
    """Read PDDL texts; raises EnvError on a construct that this interpreter does not know."""
    sections = {node[0]: node[1:] for node in _parse(problem) if isinstance(node, list)}
    missing = {":objects", ":init", ":goal"} - sections.keys()
    if missing:
        raise EnvError(f"Expected a PDDL problem with :objects, :init and :goal, but {', '.join(missing)} is missing.")
    types = dict(_typed_list(sections[":objects"]))
    facts: Facts = {}
    for node in sections[":init"]:
        if node[0] != "=":  # (= (total-cost) 0)
            facts.setdefault(node[0], set()).add(tuple(node[1:]))
    for name, kind in types.items():
        facts.setdefault(type_predicate(kind), set()).add((name,))
        facts.setdefault(type_predicate("object"), set()).add((name,))  # PDDL's root type
    actions, fluents = _parse_domain(domain)
    goal = tuple(compiled(_ordered(c, set(), fluents)) for c in _alternatives(sections[":goal"][0]))
    return Problem(actions=actions, types=types, facts=facts, goal=goal)


@lru_cache(maxsize=16)
def _parse_domain(text: str) -> tuple[tuple[Action, ...], frozenset[str]]:
    """The actions of a domain and the predicates that they change; games of one domain share them."""
    nodes = [node for node in _parse(text) if node[0] == ":action"]
    effects = [dict(zip(node[2::2], node[3::2], strict=True))[":effect"] for node in nodes]
    fluents = frozenset(literal.predicate for node in effects for literal, _ in _effects(node))
    return tuple(_action(node, fluents) for node in nodes), fluents


def _parse(text: str) -> Tree:
    """The nested list that an s-expression stands for, lower-case, without comments."""
    stack: list[Tree] = [[]]
    for token in re.findall(r"[()]|[^\s()]+", re.sub(r";[^\n]*", "", text).lower()):
        if token == "(":
            stack.append([])
        elif token != ")":
            stack[-1].append(token)
        elif len(stack) > 1:
            stack[-2].append(stack.pop())
        else:
            raise EnvError("Expected one balanced PDDL expression, but a parenthesis is closed that was not opened.")
    if len(stack) != 1 or len(stack[0]) != 1 or not isinstance(stack[0][0], list):
        raise EnvError("Expected one balanced PDDL expression, but the text is not one.")
    return stack[0][0]


def _typed_list(tokens: Tree) -> list[tuple[str, str]]:
    """`a b - t c` → [(a, t), (b, t), (c, object)]."""
    result: list[tuple[str, str]] = []
    names: list[str] = []
    rest = iter(tokens)
    for token in rest:
        if token == "-":
            kind = next(rest)
            result += [(name, kind) for name in names]
            names = []
        else:
            names.append(token)
    return result + [(name, "object") for name in names]


def _alternatives(node: Tree, positive: bool = True) -> list[list[Literal]]:
    """Disjunctive normal form; the variable of an `exists` becomes a free variable, its type a literal."""
    head = node[0] if node else "and"
    if head == "not":
        return _alternatives(node[1], not positive)
    if head in ("forall", "imply", "when") or (head in ("and", "or", "exists") and not positive):
        what = head if positive else f"not {head}"
        raise EnvError(f"Expected and, or, exists, a fact or the negation of one in the PDDL domain, but got `{what}`.")
    if head == "and":
        return [list(chain.from_iterable(parts)) for parts in product(*(_alternatives(part) for part in node[1:]))]
    if head == "or":
        return [alternative for part in node[1:] for alternative in _alternatives(part)]
    if head == "exists":
        typed = _typed_list(node[1])
        fresh = {name: f"{name}'{next(_serial)}" for name, _ in typed}  # other parts may use the same name
        types = [Literal(type_predicate(kind), (fresh[name],)) for name, kind in typed]
        return [[*types, *alternative] for alternative in _alternatives(_renamed(node[2], fresh))]
    return [[Literal(head, tuple(node[1:]), positive)]]


def _renamed(node: Tree, names: Mapping[str, str]) -> Tree:
    return [_renamed(part, names) if isinstance(part, list) else names.get(part, part) for part in node]


def _ordered(literals: Iterable[Literal], bound: set[str], fluents: frozenset[str]) -> Conjunction:
    """The literals in an order that is cheap to match.

    Checks come as soon as their variables are bound; else facts that change (where the agent is, what it holds: few),
    then those with the fewest free variables, then bare types.
    """
    rest, result, bound = list(literals), [], set(bound)

    def cost(literal: Literal) -> tuple[int, int, int]:
        free = sum(a.startswith("?") and a not in bound for a in literal.args)
        if free == 0:
            return (0, 0, 0)
        if not literal.positive or literal.predicate == "=":
            return UNBINDABLE
        return (2 if literal.predicate.startswith(type_predicate("")) else 1, literal.predicate not in fluents, free)

    while rest:
        best = min(rest, key=cost)
        if cost(best) == UNBINDABLE:
            raise EnvError(f"Expected every variable of a negated PDDL fact to be bound elsewhere, but got {best}.")
        rest.remove(best)
        result.append(best)
        bound.update(a for a in best.args if a.startswith("?"))
    return tuple(result)


def _action(node: Tree, fluents: frozenset[str]) -> Action:
    parts = dict(zip(node[2::2], node[3::2], strict=True))
    typed = _typed_list(parts[":parameters"])
    types = [Literal(type_predicate(kind), (name,)) for name, kind in typed]
    parameters = tuple(name for name, _ in typed)
    effects = tuple(
        Effect(literal, compiled(_ordered(when, set(parameters), fluents), given=parameters))
        for literal, when in _effects(parts[":effect"])
    )
    added, deleted = ({e.literal.predicate for e in effects if e.literal.positive == sign} for sign in (True, False))
    preconditions = [_ordered([*types, *c], set(), fluents) for c in _alternatives(parts[":precondition"])]
    return Action(
        name=node[1],
        parameters=parameters,
        alternatives=tuple(compiled(conjunction, wanted=parameters) for conjunction in preconditions),
        effects=effects,
        moves=bool(added & deleted),
    )


def _effects(node: Tree) -> Iterator[tuple[Literal, Conjunction]]:
    """Each literal that an effect makes true, with the condition for it."""
    if node[0] == "and":
        for part in node[1:]:
            yield from _effects(part)
    elif node[0] == "when":
        for when in _alternatives(node[1]):
            for literal, outer in _effects(node[2]):
                yield literal, (*when, *outer)
    elif node[0] != "increase":  # costs matter to the planner only
        [[literal]] = _alternatives(node)
        yield literal, ()
