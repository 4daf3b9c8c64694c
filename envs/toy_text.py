"""Gymnasium's ToyText games in words: FrozenLake, CliffWalking and Taxi, the lightest tasks of several turns."""

import re
from abc import ABC, abstractmethod
from collections import deque
from typing import Any, ClassVar

from gymnasium.envs.toy_text import CliffWalkingEnv, FrozenLakeEnv, TaxiEnv
from gymnasium.envs.toy_text.frozen_lake import generate_random_map

from envs.base import TextEnv, after_thinking, on_side_of, redraw, unknown_name
from opdlight.errors import ConfigError, NoExpertError


class ToyTextEnv(TextEnv):
    """A game of Gymnasium's ToyText family, played in words; reward 1 when the goal is reached, else 0.

    `game`: "FrozenLake-v1" (a new solvable map of `size` by `size` for every seed), "Taxi-v4" (a new start for every
    seed) or "CliffWalking-v1" (always the same start). Training and held-out seeds never share a map or start.
    `is_slippery` lets the ice or the cliff move the player sideways; the shortest-path expert needs it off.
    """

    def __init__(
        self, game: str = "FrozenLake-v1", size: int | None = None, is_slippery: bool = False, max_turns: int = 30
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
        self.game.start(int(self.np_random.integers(10**9)) if seed is None else seed)
        self._turn = 0
        self._best_action: dict[int, str] | None = None
        return f"{self.game.introduction()}{self.game.describe()}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one action; text that is none of them costs a turn and changes nothing."""
        self._turn += 1
        move = self.game.actions.get(read_action(action))
        reward, terminated, success = 0.0, False, False
        if move is None:
            text = f"That is no action. Answer with one of: {', '.join(self.game.actions)}. {self.game.describe()}"
        else:
            _, game_reward, terminated, _, _ = self.game.env.step(move)
            reward = float(game_reward)
            success = terminated and self.game.is_goal(reward)
            text = self.game.farewell(success) if terminated else self.game.describe()
        truncated = not terminated and self._turn >= self.max_turns
        info: dict[str, Any] = {"metrics": {"invalid_actions": float(move is None), "game_return": reward}}
        if terminated or truncated:
            info["success"] = success
        return text, float(success), terminated, truncated, info

    def expert_action(self) -> str:
        """The first move of a shortest path to the goal."""
        if self.is_slippery:
            raise NoExpertError("A shortest path needs moves that do what they say. Set is_slippery to false.")
        if self._best_action is None:
            self._best_action = self.game.shortest_paths()
        return self._best_action[int(self.game.env.s)]


def read_action(text: str) -> str:
    """The action in a completion: after the thinking, inside `<action>` tags where there are any, in lower case.

    >>> read_action("<think>Go.</think><action>Move Left.</action>")
    'move left'
    """
    said = after_thinking(text) or ""
    tagged = re.findall(r"<action>(.*?)</action>", said, re.DOTALL)
    return " ".join((tagged[-1] if tagged else said).lower().split()).removesuffix(".")


def place(row: int, column: int) -> str:
    """A cell in words, counted from 1 at the top left."""
    return f"row {row + 1}, column {column + 1}"


class Game(ABC):
    """One game: its words, and the Gymnasium env that plays it."""

    rules: str
    actions: ClassVar[dict[str, int]]  # words -> Gymnasium's action
    env: Any  # Gymnasium's env, with the state `s` and the transition table `P[s][a] = [(p, next, reward, terminated)]`

    def __init__(self, size: int | None, is_slippery: bool) -> None:
        if size is not None:
            raise ConfigError.wrong("size", expected="null, because only FrozenLake-v1 has sizes", got=size)

    @abstractmethod
    def start(self, seed: int) -> None:
        """Put the game into the starting state of `seed`."""

    @abstractmethod
    def describe(self) -> str:
        """The present state in one or two sentences."""

    def is_goal(self, reward: float) -> bool:
        """True if a terminating step that gave `reward` reached the goal; in most games nothing else ends it."""
        return True

    @abstractmethod
    def farewell(self, success: bool) -> str:
        """The last observation."""

    def introduction(self) -> str:
        """What the first observation says before the state."""
        return ""

    def shortest_paths(self) -> dict[int, str]:
        """For every state that can reach the goal, the action of a shortest path: breadth-first from the goal back."""
        before: dict[int, list[tuple[int, str]]] = {}
        reached: dict[int, str] = {}
        for state, moves in self.env.P.items():
            for words, move in self.actions.items():
                (_, successor, reward, terminated) = moves[move][0]
                if terminated and self.is_goal(reward):
                    reached.setdefault(int(state), words)
                elif not terminated:
                    before.setdefault(int(successor), []).append((int(state), words))
        queue = deque(reached)
        while queue:
            for state, words in before.get(queue.popleft(), []):
                if state not in reached:
                    reached[state] = words
                    queue.append(state)
        return reached


class FrozenLake(Game):
    """Cross the ice without falling into a hole."""

    rules = "You cross a frozen lake from the top left to the bottom right. A hole ends the game; edges stop you."
    actions: ClassVar = {"move left": 0, "move down": 1, "move right": 2, "move up": 3}

    def __init__(self, size: int | None, is_slippery: bool) -> None:
        self.size, self.is_slippery = 4 if size is None else size, is_slippery
        if not 3 <= self.size <= 20:
            raise ConfigError.wrong("size", expected="between 3 and 20", got=size)

    def start(self, seed: int) -> None:
        draw = 0
        while True:
            rows = generate_random_map(size=self.size, seed=redraw(seed, draw))
            if on_side_of(seed, "".join(rows)):
                break
            draw += 1
        self.cells = rows
        self.env = FrozenLakeEnv(desc=rows, is_slippery=self.is_slippery)
        self.env.reset(seed=seed)

    def introduction(self) -> str:
        holes = "; ".join(place(r, c) for r, row in enumerate(self.cells) for c, cell in enumerate(row) if cell == "H")
        return f"The lake has {self.size} rows and columns. Holes: {holes or 'none'}. "

    def describe(self) -> str:
        row, column = divmod(int(self.env.s), self.size)
        around = []
        for side, (r, c) in {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}.items():
            inside = 0 <= row + r < self.size and 0 <= column + c < self.size
            cell = {"H": "hole", "G": "goal"}.get(self.cells[row + r][column + c], "ice") if inside else "edge"
            around.append(f"{side}: {cell}")
        goal = place(self.size - 1, self.size - 1)
        return f"You are at {place(row, column)}. The goal is at {goal}. Around you: {', '.join(around)}."

    def is_goal(self, reward: float) -> bool:
        return reward > 0

    def farewell(self, success: bool) -> str:
        return "You reached the goal." if success else "You fell into a hole."


class CliffWalking(Game):
    """Walk along a cliff."""

    rules = (
        "You walk on a grid of 4 rows and 12 columns from row 4, column 1 to the goal at row 4, column 12. The cells "
        "between them in row 4 are a cliff: stepping there puts you back to the start. Edges stop you."
    )
    actions: ClassVar = {"move up": 0, "move right": 1, "move down": 2, "move left": 3}

    def __init__(self, size: int | None, is_slippery: bool) -> None:
        super().__init__(size, is_slippery)
        self.env = CliffWalkingEnv(is_slippery=is_slippery)

    def start(self, seed: int) -> None:
        self.env.reset(seed=seed)

    def describe(self) -> str:
        return f"You are at {place(*divmod(int(self.env.s), 12))}. The goal is at {place(3, 11)}."

    def farewell(self, success: bool) -> str:
        return "You reached the goal."


class Taxi(Game):
    """Fetch a passenger and bring them to their destination."""

    rules = (
        "You drive a taxi on a grid of 5 rows and 5 columns with walls. Drive to the passenger, pick them up, drive to "
        "their destination and drop them off. South is the next row, east the next column."
    )
    actions: ClassVar = {"move south": 0, "move north": 1, "move east": 2, "move west": 3, "pick up": 4, "drop off": 5}
    stands = ("red", "green", "yellow", "blue")

    def __init__(self, size: int | None, is_slippery: bool) -> None:
        super().__init__(size, is_slippery)
        if is_slippery:
            raise ConfigError.wrong("is_slippery", expected="false, because Taxi-v4 has no ice", got=is_slippery)
        self.env = TaxiEnv()

    def start(self, seed: int) -> None:
        draw = 0
        while True:
            self.env.reset(seed=redraw(seed, draw))
            if on_side_of(seed, str(int(self.env.s))):
                return
            draw += 1

    def describe(self) -> str:
        state = int(self.env.s)
        row, column, passenger, destination = self.env.decode(state)
        stand = {n: f"the {name} stand ({place(*self.env.locs[n])})" for n, name in enumerate(self.stands)}
        where = f"The passenger waits at {stand[passenger]}" if passenger < 4 else "The passenger is in the taxi"
        moves = list(self.actions.items())[:4]
        free = [words.removeprefix("move ") for words, move in moves if self.env.P[state][move][0][1] != state]
        return (
            f"The taxi is at {place(row, column)}; the way is free to the {', '.join(free)}. "
            f"{where} and wants to go to {stand[destination]}."
        )

    def farewell(self, success: bool) -> str:
        return "The passenger has arrived."


GAMES: dict[str, type[Game]] = {"FrozenLake-v1": FrozenLake, "CliffWalking-v1": CliffWalking, "Taxi-v4": Taxi}
