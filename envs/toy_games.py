"""The games behind toy_text.py: Gymnasium's tables, put into words."""

from abc import ABC, abstractmethod
from collections import deque
from typing import Any, ClassVar

from gymnasium.envs.toy_text import CliffWalkingEnv, FrozenLakeEnv, TaxiEnv
from gymnasium.envs.toy_text.frozen_lake import generate_random_map

from opdlight.envs.base import on_side_of, redraw
from opdlight.errors import ConfigError


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
        """Make a solvable map that belongs to the side of `seed`."""
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
        """The size and the holes."""
        holes = "; ".join(place(r, c) for r, row in enumerate(self.cells) for c, cell in enumerate(row) if cell == "H")
        return f"The lake has {self.size} rows and columns. Holes: {holes or 'none'}. "

    def describe(self) -> str:
        """Position, goal, and the four neighbours."""
        row, column = divmod(int(self.env.s), self.size)
        around = []
        for side, (r, c) in {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}.items():
            inside = 0 <= row + r < self.size and 0 <= column + c < self.size
            cell = {"H": "hole", "G": "goal"}.get(self.cells[row + r][column + c], "ice") if inside else "edge"
            around.append(f"{side}: {cell}")
        goal = place(self.size - 1, self.size - 1)
        return f"You are at {place(row, column)}. The goal is at {goal}. Around you: {', '.join(around)}."

    def is_goal(self, reward: float) -> bool:
        """True on the goal; a hole ends the game too, with reward 0."""
        return reward > 0

    def farewell(self, success: bool) -> str:
        """Goal or hole."""
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
        """Go to the one start."""
        self.env.reset(seed=seed)

    def describe(self) -> str:
        """Position and goal."""
        return f"You are at {place(*divmod(int(self.env.s), 12))}. The goal is at {place(3, 11)}."

    def farewell(self, success: bool) -> str:
        """Goal."""
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
        """Draw a start that belongs to the side of `seed`."""
        draw = 0
        while True:
            self.env.reset(seed=redraw(seed, draw))
            if on_side_of(seed, str(int(self.env.s))):
                return
            draw += 1

    def describe(self) -> str:
        """Position, free ways, passenger and destination."""
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
        """Arrival."""
        return "The passenger has arrived."


GAMES: dict[str, type[Game]] = {"FrozenLake-v1": FrozenLake, "CliffWalking-v1": CliffWalking, "Taxi-v4": Taxi}
