"""ALFWorld's wording: the text grammar of a game, parsed once by TextWorld and rendered here from the current facts.

The rendering follows TextWorld's ContextSensitiveGrammar (first production whose condition holds, matches in the order
of their names); what TextWorld parses anew at every step is parsed once here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from types import CodeType

from opdlight.envs.alfworld.pddl import Facts
from opdlight.errors import EnvError

GOAL = re.compile(r"(Your task is to: )([^\"]*?)(\.?\")")  # the one sentence in which the grammars of two games differ
UNKNOWN_GOAL = "UNKNOWN GOAL"
_parser = Lock()  # TextWorld's parser keeps its state in a global


@dataclass(frozen=True, slots=True)
class Entity:
    """What a game calls an object: the attributes that grammars use."""

    id: str
    name: str
    definite: str = "the"
    indefinite: str = "a"


@dataclass(frozen=True, slots=True)
class Query:
    """A conjunction of facts to look up: (predicate, (variable, type), …)."""

    terms: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


@dataclass(frozen=True, slots=True)
class Symbol:
    """`#name#`: stands for the first production of that name whose condition holds."""

    name: str


@dataclass(frozen=True, slots=True)
class Expression:
    """`{expression}`: a Python expression over the variables."""

    code: CodeType


@dataclass(frozen=True, slots=True)
class ForEach:
    """`{piece | query}`: the piece once for every match."""

    piece: "Piece"
    query: Query


@dataclass(frozen=True, slots=True)
class Listing:
    """`[piece]`: the texts of the piece joined to "a, b, and c"."""

    piece: "Piece"


Piece = str | Symbol | Expression | ForEach | Listing


@dataclass(frozen=True, slots=True)
class Production:
    """The right-hand side of a grammar rule and the condition under which it is chosen."""

    pieces: tuple[Piece, ...]
    condition: Query


@dataclass(frozen=True, slots=True)
class Scene:
    """What the grammar describes: facts, names and types of all objects."""

    facts: Facts
    entities: Mapping[str, Entity]
    types: Mapping[str, str]

    def matches(self, query: Query, binding: dict[str, str]) -> Iterator[dict[str, str]]:
        """Extensions of `binding` that satisfy the query, two variables never the same object, sorted by name."""
        yield from self._match(query.terms, dict(binding))

    def _match(self, terms: tuple, binding: dict[str, str]) -> Iterator[dict[str, str]]:
        if not terms:
            yield dict(binding)
            return
        (predicate, arguments), rest = terms[0], terms[1:]
        for row in sorted(self.facts.get(predicate, ())):
            new: dict[str, str] = {}
            for (variable, kind), value in zip(arguments, row, strict=True):
                known = binding.get(variable, new.get(variable))
                if known is None and value not in binding.values() and value not in new.values():
                    new[variable] = value
                elif known != value:
                    break
                if self.types[value] != kind:
                    break
            else:
                yield from self._match(rest, {**binding, **new})


@dataclass(frozen=True, slots=True)
class Grammar:
    """Productions, and for each action the template of its command and the symbol of its feedback."""

    productions: Mapping[str, tuple[Production, ...]]
    commands: Mapping[str, str]  # action → template with {parameter}
    feedback: Mapping[str, str]  # action → symbol

    def render(self, symbol: str, scene: Scene, binding: Mapping[str, str]) -> str:
        """The text of `#symbol#` with the variables bound to objects."""
        return "".join(self._texts(Symbol(symbol), scene, dict(binding)))

    def _texts(self, piece: Piece, scene: Scene, binding: dict[str, str]) -> list[str]:
        if isinstance(piece, str):
            return [piece]
        if isinstance(piece, Symbol):
            for production in self.productions.get(piece.name, ()):
                if next(scene.matches(production.condition, binding), None) is not None:
                    return ["".join("".join(self._texts(p, scene, binding)) for p in production.pieces)]
            raise EnvError(f"Expected the game's grammar to have a production for `#{piece.name}#`, but none applies.")
        if isinstance(piece, Expression):
            return [str(eval(piece.code, {"__builtins__": {}}, {n: scene.entities[v] for n, v in binding.items()}))]
        if isinstance(piece, ForEach):
            found = scene.matches(piece.query, binding)
            return ["".join(self._texts(piece.piece, scene, match)) for match in found]
        items = self._texts(piece.piece, scene, binding)
        if not items:
            return self._texts(Symbol("list_empty"), scene, binding)
        [comma] = self._texts(Symbol("list_separator"), scene, binding)
        [last] = self._texts(Symbol("list_last_separator"), scene, binding)
        return [comma.join(items[:-1]) + last + items[-1] if len(items) > 1 else items[0]]


def load_grammar(text: str) -> tuple[Grammar, str]:
    """The grammar of a game and its goal in words; games that differ in the goal only share one Grammar."""
    goal = GOAL.search(text)
    if goal is None:
        raise EnvError("Expected the game's grammar to say 'Your task is to: …', but it does not.")
    with _parser:
        return _parse_grammar(GOAL.sub(rf"\1{UNKNOWN_GOAL}\3", text, count=1)), goal.group(2)


@lru_cache(maxsize=16)
def _parse_grammar(text: str) -> Grammar:
    from textworld.envs.pddl.logic import GameLogic

    logic = GameLogic(domain="", grammar=text)
    productions = {
        name: tuple(Production(tuple(_piece(s) for s in rule.rhs), _query(rule.condition)) for rule in rules)
        for name, rules in logic.grammar._rules.items()
    }
    # "go to [{r.name | …}]" lists one receptacle: the one that the action is bound to
    commands = {n: re.sub(r"\[\{(\w+)\.name \|[^\]]*\]", r"{\1}", a.template) for n, a in logic.actions.items()}
    return Grammar(productions, commands, {n: a.feedback_rule.strip("#") for n, a in logic.actions.items()})


def _piece(symbol: object) -> Piece:
    from textworld.envs.pddl import textgen

    match symbol:
        case textgen.TerminalSymbol():
            return str(symbol.symbol)
        case textgen.NonterminalSymbol():
            return Symbol(symbol.symbol)
        case textgen.EvalSymbol():
            return Expression(compile(symbol.expression.strip(), "<grammar>", "eval"))
        case textgen.ListSymbol():
            return Listing(_piece(symbol.symbol))
        case textgen.ConditionalSymbol():
            return ForEach(_piece(symbol.expression), _query(symbol.given))
    raise EnvError(f"Expected a known kind of grammar symbol, but got {symbol!r}.")


def _query(text: str) -> Query:
    """`p(a:agent, l:location) & …` as a query."""
    terms = re.findall(r"([\w-]+)\(([^)]*)\)", text or "")
    pairs = [(name, tuple(tuple(a.replace(" ", "").split(":")) for a in args.split(",") if a)) for name, args in terms]
    return Query(tuple(pairs))
