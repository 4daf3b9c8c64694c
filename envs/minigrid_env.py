"""MiniGrid's and BabyAI's levels as text environments."""

import os
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import gymnasium

from opdlight.bounds import PositiveInt
from opdlight.envs.adapter import AdaptedTextEnv, Adapter
from opdlight.envs.base import About, unknown_name
from opdlight.errors import ConfigError, MissingDependencyError, NoExpertError


class MiniGridEnv(AdaptedTextEnv):
    """Walk through rooms on a grid and carry out a task in words; what is seen of them is said in words too.

    `level`: the id of a level of the package `minigrid`, as "BabyAI-GoToObj-v0" or "MiniGrid-DoorKey-6x6-v0".
    The reward is MiniGrid's: 1 - 0.9 × the share of `max_turns` that a solved task took, else 0 (some levels give -1
    for a collision). `max_turns` is the step limit of the level too, in place of its own.
    `separate_starts`: training and held-out episodes never begin with the same observation; for a level of one start,
    such as "MiniGrid-Empty-8x8-v0", nothing can be held out and it has to be false.
    BabyAI's levels have an expert, the bot of the package, and count the actions that change nothing as ineffective.
    """

    source = "generated"
    licence = "MIT; pygame is LGPL"
    packages = {"minigrid": "minigrid"}  # noqa: RUF012

    def __init__(
        self, level: str = "BabyAI-GoToObj-v0", max_turns: PositiveInt = 40, separate_starts: bool = True
    ) -> None:
        if max_turns < 1:
            raise ConfigError.wrong("max_turns", expected="a positive number of turns", got=max_turns)
        _import_minigrid()
        if level not in gymnasium.registry or not level.startswith(("BabyAI-", "MiniGrid-")):
            known = [name for name in gymnasium.registry if name.startswith(("BabyAI-", "MiniGrid-"))]
            raise unknown_name("level", level, known)
        from opdlight.envs.minigrid_words import WHAT_THEY_DO, describe, rules

        env: gymnasium.Env[Any, Any] = gymnasium.make(level, disable_env_checker=True, max_steps=max_turns)
        self.is_babyai = hasattr(type(env.unwrapped), "gen_mission")
        every = list(WHAT_THEY_DO)[: env.action_space.n]  # type: ignore[attr-defined]  # some have the first three only
        names = [None if self.is_babyai and name == "done" else name for name in every]
        prompt = rules([name for name in names if name is not None], env.unwrapped.agent_view_size)  # type: ignore[attr-defined]
        adapter = Adapter(
            system_prompt=prompt,
            actions=names,
            observation=describe,
            max_turns=max_turns,
            separate_starts=separate_starts,
        )
        super().__init__(env, adapter)

    @classmethod
    def about(cls, **arguments: Any) -> About:
        """The bot plays BabyAI's levels only."""
        babyai = str(arguments.get("level", "BabyAI-")).startswith("BabyAI-")
        return replace(super().about(**arguments), expert=babyai)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Build the rooms of the seed."""
        self._bot: Any = None  # until an expert is asked for: it searches for a way at every step
        return super().reset(seed=seed, options=options)

    def ineffective(self, action: Any | None) -> bool | None:
        """Whether an action changes nothing, as a step against a wall; None for levels that are not BabyAI's."""
        if not self.is_babyai:
            return None
        from opdlight.envs.minigrid_words import effective

        return action is not None and not effective(self.env.unwrapped)[action]

    def played(self, action: Any) -> None:
        """Let the bot see the step."""
        if self._bot is not None:
            self._bot.observe(action)

    def expert_action(self) -> str:
        """What the bot of the package does next."""
        if not self.is_babyai:
            raise NoExpertError(f"{type(self.env.unwrapped).__name__} has no expert: MiniGrid's bot plays BabyAI only.")
        if self._bot is None:
            from opdlight.envs.minigrid_bot import Expert

            self._bot = Expert(self.env)
        return self.actions.name(self._bot.action)


def _import_minigrid() -> None:
    """Import the package, which registers its levels, and let it print nothing.

    Raises:
        MissingDependencyError: if it is not installed.
    """
    if find_spec("minigrid") is None:
        raise MissingDependencyError.extra("MiniGrid", "minigrid")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # else pygame greets on standard output
    import minigrid.envs.babyai.core.roomgrid_level

    # BabyAI prints every draw of a level that it rejects; its module looks names up here before Python's own
    vars(minigrid.envs.babyai.core.roomgrid_level)["print"] = lambda *words: None
