"""A playthrough of a TextWorld game by TextWorld's own rules; subclasses say what is read."""

import math
from abc import ABC, abstractmethod
from typing import Any


class Playthrough(ABC):
    """One playthrough, from its start. The game is only read; all playthroughs share it.

    A quest is completed when the conditions of one of its events hold, once unless it can be repeated, and lost
    likewise; the game is won when all are completed that are not optional. Both are judged after every command, as in
    compiled games.
    """

    introduction: str  # the first room

    def __init__(self, game: Any) -> None:
        self.game = game  # textworld.Game
        self.objective: str = game.objective
        self.state = game.world.state.copy()
        self.actions: list[Any] = []  # so far, textworld.logic.Action
        self.won = self.lost = False
        self.changed = False  # whether the last command has changed a fact
        self.points = 0
        self._quests = list(game.quests)
        self._names = {name: info.name for name, info in game.infos.items()}
        self._commands = self._possible()
        self._policy: Any = None  # textworld.generator.game.GameProgression, which has been told…
        self._told = 0  # … so many actions

    @property
    def admissible(self) -> list[str]:
        """The commands that are possible now, sorted; none when the game is over."""
        return sorted(self._commands)

    @property
    def score(self) -> float:
        """Points so far as a share of all, from 0 to 1."""
        most = self.game.max_score  # endless where a quest can be repeated
        return self.points / most if 0 < most < math.inf else float(self.won)

    def step(self, command: str) -> str | None:
        """Carry out a command and say what happened; None, and nothing happens, if it is not possible now."""
        action = self._commands.get(command)
        if action is None:
            return None
        self.actions.append(action)
        self.changed = bool(action.added or action.removed)
        self.state.apply(action)
        gained = self._judge()
        self._commands = {} if self.won or self.lost else self._possible()
        return self._say(command, action, gained)

    def expert(self) -> str:
        """The command that TextWorld's own policy takes next: it finds back after detours.

        Where no way that it knows leads to the goal any more, it looks around.
        """
        if self._policy is None:  # slow, and seldom asked for
            from textworld.generator.game import GameProgression

            self._policy = GameProgression(self.game)
        for action in self.actions[self._told :]:
            self._policy.update(action)
        self._told = len(self.actions)
        policy = self._policy.winning_policy
        return self._words(policy[0]) if policy else "look"

    @abstractmethod
    def _say(self, command: str, action: Any, gained: int) -> str:
        """What is read after an action that `gained` so many points."""

    def _possible(self) -> dict[str, Any]:
        rules, constants = self.game.kb.rules.values(), self.game.kb.types.constants_mapping
        commands: dict[str, Any] = {}
        for action in self.state.all_applicable_actions(rules, constants):
            commands.setdefault(self._words(action), action)
        return commands

    def _words(self, action: Any) -> str:
        words: str = action.format_command(self._names)
        return words

    def _judge(self) -> int:
        """Complete and lose quests; the points that this brings."""
        gained = 0
        for quest in tuple(self._quests):
            if any(event.is_triggering(self.state) for event in quest.fail_events):
                self.lost = True
            elif any(event.is_triggering(self.state) for event in quest.win_events):
                gained += quest.reward
                if not quest.repeatable:
                    self._quests.remove(quest)
        self.points += gained
        self.won = not self.lost and not any(quest.win_events and not quest.optional for quest in self._quests)
        return gained
