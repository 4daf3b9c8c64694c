"""A task of many turns: a game in text."""

from typing import Annotated, Any

import gymnasium

from opdlight.bounds import Bounds
from opdlight.envs.actions import action_counts
from opdlight.envs.base import TextEnv, on_side_of, read_action


class ManyTurns(TextEnv):
    """Walk along a corridor to the exit; reward 1 at the exit."""

    source, licence = "generated", "yours"  # as `python -m opdlight.tasks` lists them
    system_prompt = "You are in a corridor. In each turn, answer `left` or `right`: it takes you one door further."
    moves = {"left": -1, "right": 1}  # noqa: RUF012

    # `task.tasks.many_turns.env` sets these arguments; what they are annotated with is how they are checked
    def __init__(
        self, doors: Annotated[int, Bounds(at_least=8)] = 9, max_turns: Annotated[int, Bounds(at_least=2)] = 12
    ) -> None:
        super().__init__()
        self.doors, self.max_turns = doors, max_turns

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin the episode of a seed; training and held-out seeds share no beginning."""
        super().reset(seed=seed)  # seeds self.np_random
        seed = self.episode_seed(seed)
        while True:
            self.at, self.exit = (int(door) for door in self.np_random.choice(self.doors, size=2, replace=False))
            if on_side_of(seed, self._where()):
                break
        self.turn = 0
        return self._where(), {"metrics": {}}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """One turn. Whatever the student writes, it must not raise: what is no move costs a turn and is counted."""
        self.turn += 1
        move, before = read_action(action), self.at  # after the thinking, in lower case; None if there is none
        if move in self.moves:
            self.at = min(max(self.at + self.moves[move], 0), self.doors - 1)
        solved = self.at == self.exit
        truncated = not solved and self.turn == self.max_turns
        counts = action_counts(
            parsed=move is not None, admissible=move in self.moves, ineffective=self.at == before
        )  # beside these, figures of your own
        info: dict[str, Any] = {"metrics": counts, "admissible_commands": list(self.moves)}
        if solved or truncated:
            info["success"] = solved
        return self._where(), float(solved), solved, truncated, info

    def expert_action(self) -> str:
        """A right move, for demonstrations (opdlight.sft); without one, leave this method out."""
        return "left" if self.exit < self.at else "right"

    def _where(self) -> str:
        return f"You are at door {self.at} of {self.doors - 1}. The exit is door {self.exit}."


gymnasium.register(id="ManyTurns-v0", entry_point=f"{__name__}:ManyTurns")
