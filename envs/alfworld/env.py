"""ALFWorld as a text environment."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Annotated, Any, Literal

from opdlight.bounds import Bounds, PositiveInt
from opdlight.envs.actions import action_counts
from opdlight.envs.alfworld import wheel
from opdlight.envs.alfworld.experts import EXPERTS, Expert
from opdlight.envs.alfworld.game import NOTHING_HAPPENS, Game, Play
from opdlight.envs.alfworld.generator import Design, generate, possible_rooms
from opdlight.envs.alfworld.originals import SPLITS, find_games, read_game, split_folder
from opdlight.envs.alfworld.prompts import BANNER, CONVERSATION, PAPER
from opdlight.envs.base import FIRST_HELD_OUT_SEED, About, TextEnv, read_action, unknown_name
from opdlight.envs.templates import Step, turn_template
from opdlight.errors import ConfigError


class ALFWorldEnv(TextEnv):
    """Household tasks in a text world: find an object, treat it, put it somewhere.

    source="generated": games made from the seed with ALFWorld's rules, wording and tables (not its benchmark games);
    `rooms`, `receptacles` and `objects` ([fewest, most]) say how large; a room has at least what its task needs.
    source="original": the benchmark's games below $ALFWORLD_DATA, in order of the seed and again: training seeds play
    those of `split`, held-out seeds those of `held_out_split`.
    prompt="conversation": the system prompt says how to act, then every observation is the game's plain feedback.
    prompt="paper": every observation is a complete prompt with task, last two steps and admissible actions, in words of
    ours or, for a teacher that was trained on other ones, in those of the file `prompt_template` (`envs/templates.py`).
    Its slots: `task`; `history`, all steps so far, each with `number`, `observation` and `action`; `observation`;
    `admissible_actions`, a list.
    The reward is 1 when the task is solved. An action that cannot be read or carried out costs a step.
    """

    licence = "MIT; planner GPLv3"
    packages = {"alfworld": "alfworld", "textworld": "alfworld"}  # noqa: RUF012

    def __init__(
        self,
        source: Literal["generated", "original"] = "generated",
        split: Literal["train", "valid_seen", "valid_unseen"] = "train",
        held_out_split: Literal["train", "valid_seen", "valid_unseen"] = "valid_seen",
        task_types: Sequence[str] = wheel.TASK_TYPES,
        rooms: Sequence[str] = wheel.ROOMS,
        receptacles: Sequence[Annotated[int, Bounds(at_least=3)]] = (10, 20),
        objects: Sequence[Annotated[int, Bounds(at_least=2)]] = (8, 16),
        prompt: Literal["conversation", "paper"] = "conversation",
        expert: Literal["explorer", "planner", "handcoded"] = "explorer",
        max_turns: PositiveInt = 30,
        prompt_template: str | None = None,
    ) -> None:
        super().__init__()
        wheel.require()
        for key, value, known in (
            ("source", source, ("generated", "original")),
            ("split", split, SPLITS),
            ("held_out_split", held_out_split, SPLITS),
            ("prompt", prompt, ("conversation", "paper")),
            ("expert", expert, EXPERTS),
            *(("task_types", task_type, wheel.TASK_TYPES) for task_type in task_types),
            *(("rooms", room, wheel.ROOMS) for room in rooms),
        ):
            if value not in known:
                raise unknown_name(key, str(value), known)
        if max_turns < 1:
            raise ConfigError.wrong("max_turns", expected="a positive number of turns", got=max_turns)
        self.design = _design(task_types, rooms, receptacles, objects)
        self.splits = (split, held_out_split) if source == "original" else None
        if self.splits:
            train, held_out = (len(find_games(name, self.design.task_types)) for name in self.splits)
            if split == held_out_split:  # the same games
                raise ConfigError.wrong("held_out_split", expected=f"another split than {split!r}", got=held_out_split)
            self.training_episodes, self.held_out_episodes = train, held_out
        self.expert = expert
        self.max_turns = max_turns
        self._template = turn_template(PAPER, prompt, prompt_template)
        self.fresh_prompt = prompt == "paper"
        self.system_prompt = None if self.fresh_prompt else CONVERSATION

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start the game of the seed."""
        super().reset(seed=seed)
        seed = self.episode_seed(seed)
        self._play = Play(_game(self.design, self._split(seed), seed))
        self._expert: Expert = EXPERTS[self.expert](self._play)
        self._history: list[Step] = []
        self._observation = self._play.introduction.removeprefix(BANNER)
        return self._shown(), {"admissible_commands": self._play.admissible, "metrics": {}}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Carry out the action that the answer names."""
        command = read_action(action, tags=self.fresh_prompt)
        admissible = command in self._play.commands
        feedback = NOTHING_HAPPENS
        if command is not None:
            feedback = self._play.step(command)
            self._expert.observe(command, feedback)
        self._history.append(Step(len(self._history) + 1, self._observation, command or ""))
        counts = action_counts(
            parsed=command is not None,
            admissible=admissible,
            ineffective=not self._play.changed and feedback == self._observation,
        )
        self._observation = feedback
        won = self._play.won
        truncated = not won and len(self._history) >= self.max_turns
        info: dict[str, Any] = {
            "admissible_commands": self._play.admissible,
            "metrics": counts,
        }
        if won or truncated:
            info["success"] = won
        return self._shown(), float(won), won, truncated, info

    def prepare(self, seed: int) -> None:
        """Make the game of a seed ahead; every env of the process shares it."""
        _game(self.design, self._split(seed), seed)

    @classmethod
    def about(
        cls,
        *,
        source: str = "generated",
        split: str = "train",
        held_out_split: str = "valid_seen",
        **arguments: Any,
    ) -> About:
        """Generated or original games; of these, whether their folders are there."""
        usual = super().about(**arguments)
        if source == "generated":
            return replace(usual, source="generated", finite=False)
        there = all(split_folder(name).is_dir() for name in (split, held_out_split))
        missing = usual.missing if there else (*usual.missing, "$ALFWORLD_DATA")
        return replace(usual, source="original files", finite=True, missing=missing)

    def expert_action(self) -> str:
        """What the expert does next, in the form that the prompt asks for."""
        return self.reply(self._expert.act())

    def reply(self, command: str) -> str:
        """In tags if the prompt is the paper's."""
        return f"<action>{command}</action>" if self.fresh_prompt else command

    def _split(self, seed: int) -> str | None:
        return self.splits[seed >= FIRST_HELD_OUT_SEED] if self.splits else None

    def _shown(self) -> str:
        if not self.fresh_prompt:
            return self._observation
        return self._template.render(
            task=self._play.game.goal,
            history=self._history,
            observation=self._observation,
            admissible_actions=self._play.admissible,
        )


def _design(
    task_types: Sequence[str], rooms: Sequence[str], receptacles: Sequence[int], objects: Sequence[int]
) -> Design:
    """Check and freeze the parameters of generated games."""
    for key, values, least in (("receptacles", receptacles, 3), ("objects", objects, 2)):
        whole = all(isinstance(value, int) for value in values)
        if not whole or len(values) != 2 or not least <= values[0] <= values[1]:
            raise ConfigError.wrong(
                key, expected=f"two whole numbers [fewest, most], {least} ≤ fewest ≤ most", got=list(values)
            )
    for task_type in task_types:
        if not possible_rooms(task_type, rooms):
            raise ConfigError.wrong(
                "rooms", expected=f"a room in which {task_type!r} is possible among them", got=list(rooms)
            )
    if not task_types:
        raise ConfigError.wrong("task_types", expected="at least one task type", got=list(task_types))
    return Design(
        task_types=tuple(task_types),
        rooms=tuple(rooms),
        receptacles=(receptacles[0], receptacles[1]),
        objects=(objects[0], objects[1]),
    )


@lru_cache(maxsize=512)
def _game(design: Design, split: str | None, seed: int) -> Game:
    """The game of a seed, kept so that a group of trajectories and repeated evaluations share it."""
    if split is None:
        return Game.load(generate(design, seed))
    paths = find_games(split, design.task_types)
    return Game.load(read_game(paths[seed % len(paths)]))
