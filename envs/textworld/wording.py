"""What a game of TextWorld says: its descriptions, which are written in Inform 7, filled in from what is where.

TextWorld's compiler makes a program of them; here they are read directly.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opdlight.errors import EnvError

_PIECE = re.compile(r"\[([^\]]*)\]")
_CONTENTS = re.compile(r"(is-are )?(a )?list of things (?:in|on) the (\w+)")
_SOMETHING = re.compile(r"there is (something|nothing) (?:in|on) the (\w+)")
_STATE = re.compile(r"(?:(\w+) is )?(open|closed|locked)")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def title(name: str) -> str:
    """The headline of a room."""
    return f"-= {name.title()} =-"


def listing(names: Sequence[str]) -> str:
    """Names in one phrase.

    >>> listing(["a key", "a mop", "an apple"]), listing([])
    ('a key, a mop and an apple', 'nothing')
    """
    if len(names) < 2:
        return names[0] if names else "nothing"
    return f"{', '.join(names[:-1])} and {names[-1]}"


def in_words(number: int) -> str:
    """A number as Inform writes it, up to twelve."""
    return _NUMBERS[number] if number < len(_NUMBERS) else str(number)


def tidy(text: str) -> str:
    """The text without blanks at the ends of lines, and with one empty line at most between paragraphs."""
    lines = "\n".join(" ".join(line.split()) for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", lines).strip()


class Scene:
    """What is where, for descriptions: `contents` has the things in each room, holder and inventory, latest first."""

    def __init__(self, infos: Mapping[str, Any]) -> None:
        self.infos = infos
        self.contents: dict[str, list[str]] = {}
        self.states: dict[str, str] = {}  # door or container → open, closed or locked

    def name(self, thing: str) -> str:
        """What the game calls it."""
        name: str = self.infos[thing].name
        return name

    def some(self, thing: str) -> str:
        """With the indefinite article."""
        article = self.infos[thing].indefinite or ("an" if self.name(thing)[0].lower() in "aeiou" else "a")
        return f"{article} {self.name(thing)}"

    def the(self, thing: str) -> str:
        """With the definite article; Inform takes the name of a door for a proper one."""
        if self.infos[thing].type == "d":
            return self.name(thing)
        return f"{self.infos[thing].definite or 'the'} {self.name(thing)}"

    def list_of(self, holder: str, name: Callable[[str], str] | None = None) -> str:
        """The things in or on it, in one phrase."""
        return listing([(name or self.some)(thing) for thing in self.contents.get(holder, ())])

    def describe(self, thing: str) -> str:
        """The description of a thing or a room, with its conditions decided and its lists filled in."""
        shown: list[str] = []
        speak, decided = True, False
        for number, piece in enumerate(_PIECE.split(self.infos[thing].desc or "")):
            if number % 2 == 0:
                shown.append(piece if speak else "")
            elif piece.startswith("if "):
                speak = decided = self._holds(piece.removeprefix("if "), thing)
            elif piece.startswith("else if "):
                speak = not decided and self._holds(piece.removeprefix("else if "), thing)
                decided = decided or speak
            elif piece == "otherwise":
                speak = not decided
            elif piece == "end if":
                speak = True
            elif speak:
                shown.append(self._filled(piece))
        return "".join(shown)

    def _filled(self, piece: str) -> str:
        if piece == "line break":
            return "\n"
        found = _CONTENTS.fullmatch(piece)
        if found is None:
            raise EnvError(f"Expected a description with TextWorld's own phrases, but it has `[{piece}]`.")
        verb, article, holder = found.groups()
        things = self.contents.get(holder, [])
        text = listing([self.some(t) if article else self.name(t) for t in things])
        return (("are " if len(things) > 1 else "is ") if verb else "") + text

    def _holds(self, condition: str, thing: str) -> bool:
        return all(self._fact(part, thing) for part in condition.split(" and "))

    def _fact(self, condition: str, thing: str) -> bool:
        if found := _STATE.fullmatch(condition):
            state = self.states[found[1] or thing]
            return state == found[2] or (found[2] == "closed" and state == "locked")
        if found := _SOMETHING.fullmatch(condition):
            return bool(self.contents.get(found[2])) == (found[1] == "something")
        if found := re.fullmatch(r"(?:the )?(\w+) contains nothing", condition):
            return not self.contents.get(found[1])
        raise EnvError(f"Expected a description with TextWorld's own conditions, but it has `[if {condition}]`.")
