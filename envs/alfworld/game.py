"""A game and a playthrough of it: ALFWorld's engine without its overhead.

`Game` is everything that does not change (parsed rules, names, wording); all playthroughs share it. `Play` is one of
them. Feedback and admissible commands equal those of TextWorld's PddlEnv under ALFWorld's AlfredDemangler.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

from opdlight.envs.alfworld.pddl import Action, Facts, Problem, applicable, changes, holds
from opdlight.envs.alfworld.pddl_parser import parse_problem
from opdlight.envs.alfworld.text import UNKNOWN_GOAL, Entity, Grammar, Scene, load_grammar

NOTHING_HAPPENS = "Nothing happens."
Command = tuple[Action, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GameFile:
    """A game as ALFWorld stores it (game.tw-pddl and traj_data.json)."""

    domain: str
    grammar: str
    problem: str
    task_type: str
    targets: Mapping[str, str]  # ALFRED's pddl_params: object_target, parent_target, toggle_target, …


@dataclass(frozen=True, slots=True, kw_only=True)
class Game:
    """A parsed game, immutable."""

    file: GameFile
    problem: Problem
    grammar: Grammar
    goal: str  # the task in words
    entities: Mapping[str, Entity]

    @classmethod
    def load(cls, file: GameFile) -> "Game":
        """Parse the rules, the problem and the wording; raises EnvError where they are not understood."""
        problem = parse_problem(file.domain, file.problem)
        grammar, goal = load_grammar(file.grammar)
        return cls(file=file, problem=problem, grammar=grammar, goal=goal, entities=_entities(problem))


class Play:
    """One playthrough of a game, from its start."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.facts: Facts = {predicate: set(rows) for predicate, rows in game.problem.facts.items()}
        self.scene = Scene(self.facts, game.entities, game.problem.types)
        self.won = False
        self.changed = False  # whether the last admissible command has changed a fact
        self.commands = self._commands()
        self.introduction = game.grammar.render("intro", self.scene, {}).replace(UNKNOWN_GOAL, game.goal)

    @property
    def admissible(self) -> list[str]:
        """The commands that do something now, sorted."""
        return sorted(self.commands)

    def step(self, command: str) -> str:
        """Carry out a command and say what happened; an inadmissible one changes nothing."""
        if command not in self.commands:
            return NOTHING_HAPPENS
        action, args = self.commands[command]
        self.changed = False
        for predicate, values, positive in changes(action, args, self.facts):
            # TextWorld also records what became false: the grammar asks for `not_…` facts
            gone, come = ("not_" + predicate, predicate) if positive else (predicate, "not_" + predicate)
            removed, added = self.facts.setdefault(gone, set()), self.facts.setdefault(come, set())
            self.changed |= values in removed or values not in added
            removed.discard(values)
            added.add(values)
        binding = {name.lstrip("?"): value for name, value in zip(action.parameters, args, strict=True)}
        feedback = self.game.grammar.render(self.game.grammar.feedback[action.name], self.scene, binding)
        self.won = holds(self.game.problem.goal, self.facts)
        self.commands = self._commands()
        return feedback

    def _commands(self) -> dict[str, Command]:
        commands: dict[str, Command] = {}
        for action in self.game.problem.actions:
            template = self.game.grammar.commands[action.name]
            names = [parameter.lstrip("?") for parameter in action.parameters]
            for args in applicable(action, self.facts):
                words = {
                    n: self.game.entities[a].name for n, a in zip(names, args, strict=True) if a in self.game.entities
                }
                commands.setdefault(template.format(**words), (action, args))
        return commands


def _entities(problem: Problem) -> dict[str, Entity]:
    """Names as ALFWorld gives them: `Mug|+01|…` becomes "mug 1"."""
    from alfworld.agents.utils.misc import Demangler

    ids = {a for p, rows in problem.facts.items() if not p.startswith("type ") for row in rows for a in row}
    demangler = Demangler(game_infos={name: SimpleNamespace(id=name) for name in ids})
    return {name: Entity(name, demangler.demangle_alfred_name(name)) for name in ids}
