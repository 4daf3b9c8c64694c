"""Experts that demonstrate ALFWorld: a memoryless explorer, fast-downward's planner, ALFWorld's own agent.

An expert is told every action that was taken, its own or not, so it goes on sensibly after detours.
"""

import sys
from types import SimpleNamespace
from typing import Any, Protocol

from opdlight.envs.alfworld.game import Play
from opdlight.envs.alfworld.planner import solve


class Expert(Protocol):
    """Knows a playthrough from its start and says what to do next."""

    def observe(self, command: str, feedback: str) -> None:
        """Learn that an action was taken, with this feedback."""

    def act(self) -> str:
        """The next command; calling it twice gives the same answer."""


class Explorer:
    """Deterministic patrol that uses only what the conversation shows, and little of it: a small model can learn it.

    Receptacles are visited in the order of the room description, from the present one on and round again; closed ones
    are opened. The wanted thing is taken where it is seen, treated, and brought to its destination. What is carried by
    mistake is put down first, where the game allows it. Earlier visits are not remembered: only the contents of the
    receptacle that the agent stands at count, which the game has just described.
    """

    def __init__(self, play: Play) -> None:
        self.play = play
        self.targets = {key: name.lower() for key, name in play.game.file.targets.items()}
        # in the order of the room description
        self.receptacles = sorted(receptacle for receptacle, _ in play.facts["receptacleatlocation"])

    def observe(self, command: str, feedback: str) -> None:
        """Do nothing: the explorer has no memory."""

    def act(self) -> str:
        """The next command of the patrol."""
        here = next(filter(self._is_here, self.receptacles), None)
        if here and self._has("openable", here) and not self._has("opened", here):
            return f"open {self._name(here)}"
        held = [thing for _, thing in self.play.facts.get("holds", ())]
        if held and not self._is(held[0], "object_target"):
            put_down = f"move {self._name(held[0])} to {self._name(here or self.receptacles[0])}"
            return put_down if put_down in self.play.commands else self._next(here)
        if not held:
            return self._fetch(here) or self._next(here)
        if self.play.game.file.task_type == "look_at_obj_in_light":
            lamps = [thing for thing in self._contents(here) if self._is(thing, "toggle_target")]
            return f"use {self._name(lamps[0])}" if lamps else self._next(here)
        place = self._destination()
        return self._treatment(held[0]) or self._go(place) or f"move {self._name(held[0])} to {self._name(place)}"

    def _fetch(self, here: str | None) -> str | None:
        for thing in self._contents(here):
            if self._is(thing, "object_target") and not self._delivered(thing, here):
                return f"take {self._name(thing)} from {self._name(str(here))}"
        return None

    def _next(self, here: str | None) -> str:
        """Go to the receptacle after this one."""
        position = self.receptacles.index(here) + 1 if here else 0
        place = self.receptacles[position % len(self.receptacles)]
        return self._go(place) or f"examine {self._name(place)}"

    def _treatment(self, held: str) -> str | None:
        """The next command towards clean, hot or cool; None if the thing is so, or need not be."""
        for verb, fact, kind in (
            ("clean", "isclean", "sinkbasin"),
            ("heat", "ishot", "microwave"),
            ("cool", "iscool", "fridge"),
        ):
            if f"pick_{verb}_" in self.play.game.file.task_type and not self._has(fact, held):
                place = self._of_class(kind)[0]
                return self._go(place) or f"{verb} {self._name(held)} with {self._name(place)}"
        return None

    def _destination(self) -> str:
        """The receptacle with most of the wanted objects (two go into the same one), else the first of its class."""
        places = self._of_class(self.targets["parent_target"])
        return max(places, key=lambda place: sum(self._is(t, "object_target") for t in self._contents(place)))

    def _delivered(self, thing: str, place: str | None) -> bool:
        return place in self._of_class(self.targets["parent_target"]) and self._treatment(thing) is None

    def _go(self, place: str) -> str | None:
        return None if self._is_here(place) else f"go to {self._name(place)}"

    def _is_here(self, place: str) -> bool:
        [(_, location)] = self.play.facts["atlocation"]
        return (place, location) in self.play.facts["receptacleatlocation"]

    def _contents(self, place: str | None) -> list[str]:
        """Things in the receptacle, in the order in which they are described."""
        return sorted(thing for thing, where in self.play.facts.get("inreceptacle", ()) if where == place)

    def _of_class(self, kind: str) -> list[str]:
        return [r for r in self.receptacles if (r, f"{kind}type") in self.play.facts["receptacletype"]]

    def _is(self, thing: str, target: str) -> bool:
        return (thing, f"{self.targets[target]}type") in self.play.facts["objecttype"]

    def _has(self, fact: str, thing: str) -> bool:
        return (thing,) in self.play.facts.get(fact, ())

    def _name(self, thing: str) -> str:
        return self.play.game.entities[thing].name


class Planner:
    """The plan of fast-downward, followed while the agent follows it and made anew where the agent left it."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.plan: list[str] = []

    def observe(self, command: str, feedback: str) -> None:
        """Advance in the plan, or drop it."""
        self.plan = self.plan[1:] if self.plan[:1] == [command] else []

    def act(self) -> str:
        """The first command of the plan."""
        if not self.plan:
            self.plan = solve(self.play)
        return self.plan[0]


class HandCoded:
    """ALFWorld's own hand-coded agent. It draws from Python's global random numbers where it has a choice.

    If it proposes an action that is not admissible it looks around instead, as ALFWorld's wrapper does. It often
    fails at two objects.
    """

    def __init__(self, play: Play) -> None:
        from alfworld.agents.expert import HandCodedTWAgent

        self.play = play
        self.next = "look"
        file = play.game.file
        self.agent = HandCodedTWAgent()
        policy = self.agent.get_task_policy({"task_type": file.task_type})
        targets = {key: name.lower() for key, name in file.targets.items()}
        self.agent.policy = policy(targets, max_steps=sys.maxsize)  # max_turns ends the episode
        self.agent.observe(play.introduction)

    def observe(self, command: str, feedback: str) -> None:
        """Let the agent see the step and decide."""
        self.next = self.agent.act(self._state(feedback), 0, self.play.won, command)
        if self.next not in self.play.commands:
            self.next = "look"

    def act(self) -> str:
        """What the agent decided."""
        return self.next

    def _state(self, feedback: str) -> dict[str, Any]:
        """The part of TextWorld's game state that the agent reads."""
        names = {name: entity.name for name, entity in self.play.game.entities.items()}
        facts = [
            SimpleNamespace(name=predicate, names=[names.get(a, a) for a in row])
            for predicate, rows in self.play.facts.items()
            if not predicate.startswith("type ")
            for row in sorted(rows)
        ]
        return {"feedback": feedback, "facts": facts, "admissible_commands": self.play.admissible, "won": self.play.won}


EXPERTS: dict[str, type[Explorer] | type[Planner] | type[HandCoded]] = {
    "explorer": Explorer,
    "planner": Planner,
    "handcoded": HandCoded,
}
