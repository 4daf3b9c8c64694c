"""Environments made with the real package openenv, and the app that serves all of them; a test starts it with uvicorn.

Each lies below a path of its own: /guess, /calculator, /grid, /dice, /echo.
"""

import os
import random
from itertools import count
from typing import Any

from fastapi import FastAPI
from fastmcp import FastMCP
from openenv.core.env_server import (
    Action,
    CallToolAction,
    CallToolObservation,
    Environment,
    MCPEnvironment,
    Observation,
    State,
    create_app,
)
from openenv.core.env_server.types import EnvironmentMetadata


class Game(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self.turns = 0

    @property
    def state(self) -> State:
        return State(step_count=self.turns)


class GuessAction(Action):
    guess: str


class Text(Observation):
    text: str = ""
    hint: str | None = None


class Guess(Game):
    """One field of text; a hidden number that the seed draws."""

    def reset(self, seed: int | None = None, highest: int = 9, **_: Any) -> Text:
        self.number, self.turns = random.Random(seed).randint(1, highest), 0
        return Text(text=f"Guess a number from 1 to {highest}.")

    def step(self, action: GuessAction, **_: Any) -> Text:
        self.turns += 1
        if action.guess == "die":
            os._exit(9)
        guess = int(action.guess)
        hint = "" if guess == self.number else "Higher." if guess < self.number else "Lower."
        return Text(text=hint or "Right!", reward=float(not hint), done=not hint)

    def get_metadata(self) -> EnvironmentMetadata:
        return EnvironmentMetadata(name="Guess", description="Find a hidden number.")


class Calculator(MCPEnvironment):
    """Tools of MCP; the task ends with a call of `answer`."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        tools = FastMCP("calculator")
        self.sum, self.end = 0, False

        @tools.tool
        def add(a: int, b: int) -> int:
            """Add two numbers."""
            return a + b

        @tools.tool
        def look() -> dict[str, Any]:
            """Show the numbers."""
            return {"numbers": self.numbers}

        @tools.tool
        def answer(value: int) -> str:
            """Give the sum of the numbers."""
            self.end, self.right = True, value == sum(self.numbers)
            return "right" if self.right else "wrong"

        @tools.tool
        def fail() -> str:
            """Fail."""
            raise ValueError("it is broken")

        super().__init__(tools)

    def reset(self, seed: int | None = None, **_: Any) -> Text:
        self.numbers, self.end, self.right = random.Random(seed).sample(range(100), 2), False, False
        return Text(text="Add the numbers.")

    def step(self, action: Action, **_: Any) -> Observation:
        return self.rewarded(super().step(action))

    async def step_async(self, action: Action, **_: Any) -> Observation:
        return self.rewarded(await super().step_async(action))

    def rewarded(self, observation: Observation) -> Observation:
        observation.done, observation.reward = self.end, float(self.end and self.right)
        return observation

    def _step_impl(self, action: Action, **_: Any) -> Observation:
        raise NotImplementedError  # the package asks for it; both ways to step are above, and do not come here

    @property
    def state(self) -> State:
        return State()


class GridAction(Action):
    row: int
    column: int


class Grid(Game):
    """Two fields, and the tasks of two splits, of which each is one cell to name."""

    tasks = {"train": [(0, 1), (2, 3), (1, 1)], "test": [(3, 0), (0, 3)]}  # noqa: RUF012

    def reset(self, split: str | None = None, index: int = 0, **_: Any) -> Text:
        if split is None:
            raise ValueError("which split?")
        self.cell, self.turns = self.tasks[split][index], 0
        return Text(text=f"{split} {index}")

    def step(self, action: GridAction, **_: Any) -> Text:
        right = (action.row, action.column) == self.cell
        return Text(text="Yes." if right else "No.", hint="" if right else "Try again.", reward=right, done=right)

    def list_splits(self) -> list[str]:
        return list(self.tasks)

    def num_tasks(self, split: str) -> int:
        return len(self.tasks[split])


class DiceAction(Action):
    throws: int
    how: str = "by hand"


class Dice(Environment):
    """A number as its only required field; it ignores seeds and has one session."""

    episodes = count()

    def reset(self) -> Text:
        return Text(text=f"Game {next(self.episodes)}")

    def step(self, action: DiceAction, **_: Any) -> Text:
        return Text(text=f"{action.throws} {action.how}")

    @property
    def state(self) -> State:
        return State()


class Echo(Game):
    """It never ends and rewards the length of the text, as the example of openenv does."""

    def reset(self, **_: Any) -> Text:
        return Text()

    def step(self, action: GuessAction, **_: Any) -> Text:
        return Text(text=action.guess, reward=len(action.guess) / 10)


app = FastAPI()
grid = create_app(Grid, GridAction, Text, env_name="grid", max_concurrent_envs=64)
if not any(getattr(route, "path", "") == "/list_environments" for route in grid.routes):
    # the task API, which later versions have

    @grid.get("/list_environments")
    def list_environments() -> list[str]:
        return ["grid"]

    @grid.post("/grid/num_tasks")
    def num_tasks(body: dict[str, str]) -> dict[str, int]:
        return {"num_tasks": len(Grid.tasks[body["split"]])}


app.mount("/guess", create_app(Guess, GuessAction, Text, env_name="guess", max_concurrent_envs=64))
app.mount(
    "/calculator",
    create_app(Calculator, CallToolAction, CallToolObservation, env_name="calculator", max_concurrent_envs=64),
)
app.mount("/grid", grid)
app.mount("/dice", create_app(Dice, DiceAction, Text, env_name="dice"))
app.mount("/echo", create_app(Echo, GuessAction, Text, env_name="echo", max_concurrent_envs=64))
