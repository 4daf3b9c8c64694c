"""TextWorld as a text environment."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from opdlight.bounds import PositiveInt
from opdlight.envs.actions import action_counts
from opdlight.envs.base import About, TextEnv, read_action, unknown_name
from opdlight.envs.templates import Step, turn_template
from opdlight.envs.textworld.design import GAMES, LEVELS, OBJECTIVES, REWARDS, Design
from opdlight.envs.textworld.files import find_games
from opdlight.envs.textworld.playthrough import Playthrough
from opdlight.envs.textworld.prompts import CONVERSATION, NO_OBJECTIVE, NOT_POSSIBLE, PAPER
from opdlight.envs.textworld.words import Play
from opdlight.errors import ConfigError, MissingDependencyError

_making = threading.Lock()  # TextWorld's parser and random numbers are global


class TextWorldEnv(TextEnv):
    """A text adventure of TextWorld: walk through rooms, open, take and move things until the goal is reached.

    game="custom": worlds from the seed as `tw-make custom --seed` makes them, of `world_size` rooms, at least
    `nb_objects` objects and a goal that takes `quest_length` commands. "tw-simple": one house, a dinner to cook, with
    `rewards` for many, some or only the last of its steps. "tw-coin_collector" and "tw-treasure_hunter": mazes of a
    `level` (1 to 300 and 1 to 30). Training and held-out seeds never share a game.
    games: a folder or a list of files of one's own instead, .z8 (with the .json that `tw-make` writes beside it) or
    .json, in order of the seed and again; `held_out_games` likewise, or, if it is null, one in four of `games`.
    objective: what the first observation says of the goal: every step ("detailed"), the last one ("brief"), or nothing.
    prompt="conversation": the system prompt says how to act, then every observation is the game's own text.
    prompt="paper": every observation is a complete prompt with task, last two steps and admissible actions, in words of
    ours or in those of the file `prompt_template` (`envs/templates.py`), with the slots that ALFWorld has.
    The reward of a step is by how much it raises the score, of which 1 is all of the game's points; winning is success.
    An action that cannot be read, or is not possible now, costs a turn and changes nothing.
    """

    source = "generated"
    licence = "MIT; interpreter of compiled games GPLv2"
    packages = {"textworld": "alfworld"}  # noqa: RUF012

    def __init__(
        self,
        game: Literal["custom", "tw-simple", "tw-coin_collector", "tw-treasure_hunter"] = "custom",
        world_size: PositiveInt = 3,
        nb_objects: PositiveInt = 6,
        quest_length: PositiveInt = 3,
        level: PositiveInt = 1,
        rewards: Literal["dense", "balanced", "sparse"] = "dense",
        objective: Literal["detailed", "brief", "none"] = "detailed",
        games: str | Sequence[str] | None = None,
        held_out_games: str | Sequence[str] | None = None,
        prompt: Literal["conversation", "paper"] = "conversation",
        max_turns: PositiveInt = 30,
        prompt_template: str | None = None,
    ) -> None:
        super().__init__()
        if find_spec("textworld") is None:
            raise MissingDependencyError.extra("TextWorld", "alfworld")
        for key, value, known in (
            ("game", game, GAMES),
            ("rewards", rewards, REWARDS),
            ("objective", objective, OBJECTIVES),
            ("prompt", prompt, ("conversation", "paper")),
        ):
            if value not in known:
                raise unknown_name(key, value, known)
        numbers = {"world_size": world_size, "nb_objects": nb_objects, "quest_length": quest_length, "level": level}
        for key, number in {**numbers, "max_turns": max_turns}.items():
            if number < 1:
                raise ConfigError.wrong(key, expected="a positive number", got=number)
        if level > LEVELS.get(game, level):
            raise ConfigError.wrong("level", expected=f"at most {LEVELS[game]} in {game}", got=level)
        self.design = Design(game=game, rewards=rewards, objective=objective, **numbers)
        self.files = None if games is None else find_games(games, held_out_games)
        if self.files:
            self.training_episodes, self.held_out_episodes = len(self.files.training), len(self.files.held_out)
            if objective == "brief":
                raise ConfigError.wrong("objective", expected="'detailed' or 'none' beside `games`", got=objective)
        elif held_out_games is not None:
            raise ConfigError.wrong("held_out_games", expected="null without `games`", got=held_out_games)
        self.max_turns = max_turns
        self._template = turn_template(PAPER, prompt, prompt_template)
        self.fresh_prompt = prompt == "paper"
        self.system_prompt = None if self.fresh_prompt else CONVERSATION

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start the game of the seed."""
        super().reset(seed=seed)
        seed = self.episode_seed(seed)
        self._play = self._start(seed)
        self._objective = "" if self.design.objective == "none" else self._play.objective.strip()
        self._history: list[Step] = []
        self._observation = self._play.introduction
        first = f"{self._objective}\n\n{self._observation}" if self._objective else self._observation
        return self._shown() if self.fresh_prompt else first, self._info({})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Carry out the command that the answer holds."""
        words = read_action(action, tags=self.fresh_prompt)
        command = next((c for c in self._play.admissible if c.lower() == words), None)
        score = self._play.score
        feedback = (self._play.step(command) if command else None) or NOT_POSSIBLE
        counts = action_counts(
            parsed=words is not None,
            admissible=command is not None,
            ineffective=not self._play.changed and feedback == self._observation,
        )
        self._history.append(Step(len(self._history) + 1, self._observation, words or ""))
        self._observation = feedback
        over = self._play.won or self._play.lost
        truncated = not over and len(self._history) >= self.max_turns
        info = self._info(counts)
        if over or truncated:
            info["success"] = self._play.won
        return self._shown(), self._play.score - score, over, truncated, info

    def prepare(self, seed: int) -> None:
        """Make the game of a seed ahead; every env of the process shares it."""
        if not self.files:
            _game(self.design, seed)

    def expert_action(self) -> str:
        """What TextWorld's policy does next, in the form that the prompt asks for."""
        return self.reply(self._play.expert())

    def reply(self, command: str) -> str:
        """In tags if the prompt is the paper's."""
        return f"<action>{command}</action>" if self.fresh_prompt else command

    @classmethod
    def about(cls, *, games: str | Sequence[str] | None = None, **arguments: Any) -> About:
        """Generated games, or files, which are looked for, not read."""
        usual = super().about(**arguments)
        if games is None:
            return usual
        names = [games] if isinstance(games, str) else list(games)
        absent = [f"games in {name}" for name in names if not Path(name).expanduser().exists()]
        return replace(usual, source="files of your own", finite=True, missing=(*usual.missing, *absent))

    def _start(self, seed: int) -> Playthrough:
        return self.files.play(seed) if self.files else Play(_game(self.design, seed))

    def _info(self, metrics: dict[str, float]) -> dict[str, Any]:
        return {"admissible_commands": self._play.admissible, "metrics": metrics}

    def _shown(self) -> str:
        if not self.fresh_prompt:
            return self._observation
        return self._template.render(
            task=self._objective or NO_OBJECTIVE,
            history=self._history,
            observation=self._observation,
            admissible_actions=self._play.admissible,
        )


def _game(design: Design, seed: int) -> Any:
    """The game of a seed, kept so that a group of trajectories and repeated evaluations share it."""
    with _making:
        return _generated(design, seed)


@lru_cache(maxsize=512)
def _generated(design: Design, seed: int) -> Any:
    from opdlight.envs.textworld.generator import generate

    return generate(design, seed)
