"""Games from a seed by TextWorld's own makers, without its compiler. Imported late: it needs the extra `alfworld`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import textworld
import textworld.challenges
from textworld.generator import QuestGenerationError, make_game
from textworld.generator.data import KnowledgeBase

from opdlight.envs.base import on_side_of, redraw
from opdlight.envs.textworld.design import Design
from opdlight.envs.textworld.words import Play
from opdlight.errors import ConfigError, EnvError

_DRAWS = 400  # of which one in four is of a held-out game


class _Maker(textworld.GameMaker):
    """TextWorld's maker, which finds out what the commands of a walkthrough do by playing here, not a compiled game."""

    def set_walkthrough(self, commands: Sequence[str]) -> None:
        """Give each event of the quests the actions that lead to it."""
        play = Play(self.build())
        waiting = [event for quest in self.quests for event in quest.win_events]
        waiting = [event for event in waiting if not event.is_triggering(play.state)]
        for number, command in enumerate(commands, start=1):
            if play.step(command) is None:
                raise EnvError(f"Expected a walkthrough that can be played, but {command!r} is not possible.")
            for event in [event for event in waiting if event.is_triggering(play.state)]:
                event.actions, event.commands = play.actions, commands[:number]
                waiting.remove(event)


def generate(design: Design, seed: int) -> Any:
    """The game of a seed, a `textworld.Game`.

    It is the one that `tw-make … --seed` makes; where that is on the other side of training and held-out seeds (same
    rooms, things and goals, whatever the words around them), the next draw's. Not for several threads at once.

    Raises:
        ConfigError: if TextWorld cannot make such games, or has too few for both sides.
    """
    failures: list[Exception] = []
    for attempt in range(_DRAWS):
        try:
            game = _make(design, redraw(seed, attempt) % 2**32)  # numpy takes no larger seed
        except QuestGenerationError as error:
            failures.append(error)
            if len(failures) > 20:
                got = f"{design.quest_length} in {design.world_size} rooms with {design.nb_objects} objects"
                raise ConfigError.wrong("quest_length", expected="a quest that fits the world", got=got) from error
            continue
        if on_side_of(seed, _content(game)):
            return game
    expected = "settings of which there are so many games that training and held-out seeds do not share one"
    raise ConfigError.wrong("level" if design.has_level else "world_size", expected=expected, got=design)


def _make(design: Design, seed: int) -> Any:
    options = textworld.GameOptions()
    options.seeds = seed
    options.grammar.only_last_action = design.objective == "brief"
    options.grammar.allowed_variables_numbering = True  # "key 2" where names run out, instead of an error
    textworld.g_rng.set_seed(seed)  # what is not drawn from the options
    if design.game == "custom":
        options.kb = KnowledgeBase.default()  # parsed once
        options.nb_rooms, options.nb_objects = design.world_size, design.nb_objects
        options.quest_length = design.quest_length
        return make_game(options)
    _, make, _ = textworld.challenges.CHALLENGES[design.game]
    settings = {"level": design.level, "rewards": design.rewards, "goal": design.objective, "test": False}
    with _without_compiler():
        try:
            return make(settings, options)
        except ValueError as error:
            expected = f"a level of {design.game} ({error})"
            raise ConfigError.wrong("level", expected=expected, got=design.level) from error


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Challenges take our maker, and rules that are parsed once.

    TextWorld itself would compile each of their games to play the walkthrough, which takes 1.5 s more, and parse the
    rules again.
    """
    with patch.object(textworld, "GameMaker", _Maker), patch.object(KnowledgeBase, "load", _rules):
        yield


_load = KnowledgeBase.load


@cache
def _rules(folder: str) -> Any:
    return _load(folder)


def _content(game: Any) -> str:
    """What makes a game: its facts and goals, by the names of things."""

    def words(fact: Any) -> tuple[str, ...]:
        return (fact.name, *(game.infos[v.name].name or v.name for v in fact.arguments))

    goals = [
        sorted(map(words, event.condition.preconditions))
        for quest in game.quests
        for event in (*quest.win_events, *quest.fail_events)
    ]
    return repr((sorted(map(words, game.world.facts)), goals))
