"""Playthroughs in the words of compiled games, without compiling.

`tests/envs/test_textworld_words.py` compares them with games that TextWorld's compiler made.
"""

import re
from collections.abc import Iterator
from typing import Any

from opdlight.envs.textworld.playthrough import Playthrough
from opdlight.envs.textworld.wording import Scene, in_words, listing, tidy, title

_FIXED = ("c", "s", "d")  # kinds that are described with their room
_DESCRIBED = frozenset(
    ["look", "inventory", "open/c", "open/d"]
    + [f"go/{direction}" for direction in ("north", "south", "east", "west")]
    + [f"examine/{kind}" for kind in "tIscd"]
)
_SENTENCES = {
    "close/c": "You close {0}.",
    "close/d": "You close {0}.",
    "drop": "You drop {0} on the ground.",
    "eat": "You eat {0}. Not bad.",
    "insert": "You put {0} into {1}.",
    "lock/c": "You lock {0}.",
    "lock/d": "You lock {0}.",
    "put": "You put {0} on {1}.",
    "take": "You pick up {0} from the ground.",
    "take/c": "You take {0} from {1}.",
    "take/s": "You take {0} from {1}.",
    "unlock/c": "You unlock {0}.",
    "unlock/d": "You unlock {0}.",
}
KNOWN_RULES = _DESCRIBED.union(_SENTENCES)  # of TextWorld's own kinds of games, but for tw-cooking


class Play(Playthrough):
    """A playthrough in TextWorld's own words, for games of `KNOWN_RULES`."""

    def __init__(self, game: Any) -> None:
        super().__init__(game)
        self._scene = Scene(game.infos)
        for fact in _declared(game):
            self._put(fact)
        self.introduction = tidy(self._look())

    def _say(self, command: str, action: Any, gained: int) -> str:
        for fact in action.removed:
            if _is_place(fact):
                self._scene.contents[fact.arguments[1].name].remove(fact.arguments[0].name)
        for fact in action.added:
            self._put(fact)
        said = self._happened(action)
        if gained:
            said += f"\n\nYour score has just gone up by {in_words(gained)} point{'s' if gained > 1 else ''}."
        if self.won or self.lost:
            turns = len(self.actions) + self.won  # a win is noticed when the next turn has begun
            total = f"{self.points} out of a possible {self.game.max_score}, in {turns} turn{'s' if turns > 1 else ''}"
            said += f"\n\n*** {'The End' if self.won else 'You lost!'} ***\n\nYou scored {total}."
        return tidy(said)

    def _happened(self, action: Any) -> str:
        scene, verb = self._scene, action.name.partition("/")[0]
        if verb in ("look", "go"):
            return self._look()
        if verb == "inventory":
            return f"You are carrying{':' if scene.contents.get('I') else ''} {scene.list_of('I')}."
        things = re.findall(r"{(\w+)}", action.command_template)
        if verb == "examine":
            return self._examine(things[0])
        if verb == "open":
            inside = scene.contents.get(things[0])
            return f"You open {scene.the(things[0])}{f', revealing {scene.list_of(things[0])}' if inside else ''}."
        return _SENTENCES[action.name].format(*map(scene.the, things))

    def _examine(self, thing: str) -> str:
        scene, text = self._scene, self._scene.describe(thing)
        inside = scene.contents.get(thing)
        if inside and scene.states.get(thing, "open") == "open":
            where = "In" if thing in scene.states else "On"
            text += f"\n\n{where} {scene.the(thing)} {'are' if len(inside) > 1 else 'is'} {scene.list_of(thing)}."
        return text

    def _look(self) -> str:
        scene, kinds = self._scene, self.game.kb.types
        [room] = [at.arguments[1].name for at in self.state.facts if at.name == "at" and at.arguments[0].type == "P"]
        text = f"{title(scene.name(room))}\n{scene.describe(room)}"
        floor = [
            scene.some(thing)
            for thing in scene.contents.get(room, ())
            if not any(kinds.is_descendant_of(self.game.infos[thing].type, kind) for kind in _FIXED)
        ]
        return f"{text}\n\nThere is {listing(floor)} on the floor." if floor else text

    def _put(self, fact: Any) -> None:
        if _is_place(fact):
            self._scene.contents.setdefault(fact.arguments[1].name, []).insert(0, fact.arguments[0].name)
        elif fact.name in ("open", "closed", "locked"):
            self._scene.states[fact.arguments[0].name] = fact.name


def _is_place(fact: Any) -> bool:
    """Whether a fact says where a thing is."""
    return fact.name in ("in", "on", "at") and fact.arguments[0].type != "P"


def _declared(game: Any) -> Iterator[Any]:
    """All facts; what a compiled game declares first comes last, so that it is first in its place."""
    things = [thing.id for kind in game.kb.types for thing in game.world.get_entities_per_type(kind)]
    rank = {name: -number for number, name in enumerate(things)}
    yield from sorted(game.world.facts, key=lambda fact: [rank.get(v.name, 0) for v in fact.arguments])
