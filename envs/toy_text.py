"""Gymnasium's ToyText games in words: FrozenLake, CliffWalking and Taxi, the lightest tasks of several turns."""

from dataclasses import replace
from typing import Annotated, Any

from opdlight.bounds import Bounds
from opdlight.envs.actions import action_counts
from opdlight.envs.base import About, TextEnv, read_action, unknown_name
from opdlight.envs.toy_games import GAMES
from opdlight.errors import ConfigError, NoExpertError


class ToyTextEnv(TextEnv):
    """A game of Gymnasium's ToyText family, played in words; reward 1 when the goal is reached, else 0.

    `game`: "FrozenLake-v1" (a new solvable map of `size` by `size` for every seed), "Taxi-v4" (a new start for every
    seed) or "CliffWalking-v1". Training and held-out seeds never share a map or start, but for "CliffWalking-v1", which
    has one start: its held-out episodes are its training episodes, with other random slips if it is slippery.
    Maps and starts repeat where there are few, such as the 300 starts of "Taxi-v4".
    `is_slippery` lets the ice or the cliff move the player sideways; the shortest-path expert needs it off.
    """

    source, licence = "generated", "MIT"

    def __init__(
        self,
        game: str = "FrozenLake-v1",
        size: Annotated[int, Bounds(at_least=3, at_most=20)] | None = None,
        is_slippery: bool = False,
        max_turns: Annotated[int, Bounds(at_least=2)] = 30,
    ) -> None:
        super().__init__()
        if game not in GAMES:
            raise unknown_name("game", game, GAMES)
        if max_turns < 2:
            raise ConfigError.wrong("max_turns", expected="at least 2", got=max_turns)
        self.game = GAMES[game](size, is_slippery)
        self.is_slippery, self.max_turns = is_slippery, max_turns
        choices = ", ".join(self.game.actions)
        slip = " It is slippery: you may slide to the side of where you want to go." if is_slippery else ""
        self.system_prompt = (
            f"{self.game.rules}{slip}\nEvery turn, answer with exactly one of these actions: {choices}."
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draw the map or the start of `seed` and describe it."""
        super().reset(seed=seed)
        self.game.start(self.episode_seed(seed))
        self._turn = 0
        self._best_action: dict[int, str] | None = None
        return f"{self.game.introduction()}{self.game.describe()}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one action; text that is no action costs a turn and changes nothing."""
        self._turn += 1
        command = read_action(action)
        move, before = self.game.actions.get(command or ""), int(self.game.env.s)
        reward, terminated, success = 0.0, False, False
        if move is None:
            text = f"That is no action. Answer with one of: {', '.join(self.game.actions)}. {self.game.describe()}"
        else:
            _, game_reward, terminated, _, _ = self.game.env.step(move)
            reward = float(game_reward)
            success = terminated and self.game.is_goal(reward)
            text = self.game.farewell(success) if terminated else self.game.describe()
        truncated = not terminated and self._turn >= self.max_turns
        same = not terminated and int(self.game.env.s) == before  # what the player reads tells the state, and no more
        counts = action_counts(parsed=command is not None, admissible=move is not None, ineffective=same)
        info: dict[str, Any] = {"metrics": {**counts, "game_return": reward}}
        if terminated or truncated:
            info["success"] = success
        return text, float(success), terminated, truncated, info

    @classmethod
    def about(cls, *, is_slippery: bool = False, **arguments: Any) -> About:
        """Without an expert where it is slippery."""
        return replace(super().about(**arguments), expert=not is_slippery)

    def expert_action(self) -> str:
        """The first move of a shortest path to the goal."""
        if self.is_slippery:
            raise NoExpertError("A shortest path needs moves that do what they say. Set is_slippery to false.")
        if self._best_action is None:
            self._best_action = self.game.shortest_paths()
        return self._best_action[int(self.game.env.s)]
