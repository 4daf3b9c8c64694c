"""BabyAI's bot as an expert that never fails with an error."""

from typing import Any

from minigrid.core.actions import Actions
from minigrid.utils.baby_ai_bot import BabyAIBot, DisappearedBoxError, Subgoal

MOST_SUBGOALS = 200  # a plan that grows longer never ends: the bot adds to it for ever without choosing an action


class NoPlan(Exception):
    """The bot has lost its way."""


class Plan(list[Subgoal]):
    """The subgoals of the bot; too many are an error."""

    def append(self, subgoal: Subgoal) -> None:
        """Add the next subgoal."""
        if len(self) >= MOST_SUBGOALS:
            raise NoPlan
        super().append(subgoal)


class Expert:
    """The bot of the package, which has to see every step from the first on. It sees what the player has seen.

    Args:
        env: a BabyAI level, just reset.
    """

    def __init__(self, env: Any) -> None:
        self.bot = BabyAIBot(env)
        self.bot.stack = Plan(self.bot.stack)
        self.lost = False
        self.action = self._next(None)

    def observe(self, action: int) -> None:
        """Note an action that has been played, by the bot or not."""
        self.action = self._next(action)

    def _next(self, action: int | None) -> int:
        """What to do; turns left once the bot knows no way, as after a box was opened that it needed."""
        if not self.lost:
            try:
                chosen: int = self.bot.replan(action)
                if chosen != Actions.done:  # it has carried out its plan, and yet the episode goes on
                    return chosen
            except (NoPlan, DisappearedBoxError, AssertionError):
                pass
            self.lost = True
        return Actions.left
