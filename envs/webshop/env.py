"""WebShop as a text environment."""

import threading
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from opdlight.bounds import PositiveInt, Seed
from opdlight.envs.actions import action_counts
from opdlight.envs.base import FIRST_HELD_OUT_SEED, About, TextEnv, read_action, unknown_name
from opdlight.envs.templates import Step, turn_template
from opdlight.envs.webshop.catalogue import Catalogue
from opdlight.envs.webshop.expert import Expert
from opdlight.envs.webshop.generator import generate
from opdlight.envs.webshop.goals import GOAL_SOURCES, GoalSource, held_out_count
from opdlight.envs.webshop.nouns import NounRule, nouns_by
from opdlight.envs.webshop.originals import built_folder, find_files
from opdlight.envs.webshop.prompts import (
    CONVERSATION,
    LONGEST,
    PAPER,
    UNAVAILABLE,
    admissible_actions,
    conversation_page,
    paper_page,
)
from opdlight.envs.webshop.reward import Reward, reward
from opdlight.envs.webshop.session import Session, parse_action
from opdlight.errors import ConfigError

_loading = threading.Lock()


class WebShopEnv(TextEnv):
    """Buy a product that fits an instruction, in a text version of a web shop, with WebShop's rules.

    source="generated": a catalogue of invented products made from `catalogue_seed`, with WebShop's schema (not its
    benchmark: scores do not compare). source="original": WebShop's own files in the folder `data` or, if it is null,
    $WEBSHOP_DATA; the first `products` rows, or all if that is null.
    goals="synthetic": one for every combination of a product's options; goals="human": those that people wrote.
    They are shuffled with one fixed seed, and the first 500 (of fewer than 2,000, a quarter) are held out, for every
    worker and run; the original's copies that shuffle anew for each worker mix training and held-out goals.
    prompt="conversation": the system prompt says how to act, then every observation is a page in plain lines.
    prompt="paper": every observation is a complete prompt with task, last two steps and admissible actions, in words of
    ours or in those of the file `prompt_template` (`envs/templates.py`), with the slots that ALFWorld has.
    nouns: how the reward finds the nouns of titles, by spaCy's small model as in the original, or by a rule ("words");
    "auto" takes spaCy where the model is installed.
    The reward is WebShop's, from 0 to 1, and is given for a purchase, which ends the episode; 1 is success. An action
    that cannot be read, or is not possible on the page, costs a turn.
    """

    licence = "MIT"

    def __init__(
        self,
        source: Literal["generated", "original"] = "generated",
        data: str | None = None,
        products: PositiveInt | None = 1000,
        catalogue_seed: Seed = 0,
        goals: GoalSource = "synthetic",
        nouns: NounRule = "auto",
        show_attributes: bool = False,
        prompt: Literal["conversation", "paper"] = "conversation",
        max_turns: PositiveInt = 15,
        prompt_template: str | None = None,
    ) -> None:
        super().__init__()
        for key, value, known in (
            ("source", source, ("generated", "original")),
            ("goals", goals, GOAL_SOURCES),
            ("nouns", nouns, ("auto", "spacy", "words")),
            ("prompt", prompt, ("conversation", "paper")),
        ):
            if value not in known:
                raise unknown_name(key, str(value), known)
        if max_turns < 1:
            raise ConfigError.wrong("max_turns", expected="a positive number of turns", got=max_turns)
        self._template = turn_template(PAPER, prompt, prompt_template)
        self.nouns = nouns_by(nouns)
        self.catalogue = _catalogue(source, data, products, catalogue_seed, goals)
        count = len(self.catalogue.picks)
        if (held_out := held_out_count(count)) == 0:
            raise ConfigError.wrong("products", expected=f"so many that there are 4 {goals} goals", got=products)
        self.training_episodes, self.held_out_episodes = count - held_out, held_out
        self.show_attributes, self.max_turns = show_attributes, max_turns
        self.fresh_prompt = prompt == "paper"
        self.system_prompt = None if self.fresh_prompt else CONVERSATION

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Open the shop with the goal of the seed."""
        super().reset(seed=seed)
        seed = self.episode_seed(seed)
        self.goal = self.catalogue.goal(self._number(seed))
        self.session = Session(self.catalogue, self.goal.instruction, self.show_attributes)
        self._expert = Expert(self.catalogue, self.goal, self.nouns)
        self._history: list[Step] = []
        page = self._page()
        first = page if self.fresh_prompt else f"{self.goal.instruction}\n{page}"
        return first, {"admissible_commands": self._clicks(), "metrics": {}}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Do what the answer says."""
        command = read_action(action, tags=self.fresh_prompt)
        parsed = parse_action(command) if command else None
        before, state = paper_page(self.session) if self.fresh_prompt else "", self.session.state
        done = parsed is not None and self.session.act(parsed[0], self._button(parsed[1]))
        self._history.append(Step(len(self._history) + 1, before, command or ""))
        bought = self._reward() if self.session.page == "done" else None
        metrics = {
            **action_counts(parsed=parsed is not None, admissible=done, ineffective=self.session.state == state),
            "purchases": float(bought is not None),
            "right_type": float(bought is not None and bought.type_score == 1.0),
            "right_price": float(bought is not None and bought.price_match),
        }
        info: dict[str, Any] = {"admissible_commands": self._clicks(), "metrics": metrics}
        if bought is not None:
            info["success"] = bought.total == 1.0
            return f"Thank you for shopping. Your score: {bought.total:.2f}", bought.total, True, False, info
        truncated = len(self._history) >= self.max_turns
        if truncated:
            info["success"] = False
        page = self._page()
        return (page if done or self.fresh_prompt else UNAVAILABLE + page), 0.0, False, truncated, info

    @classmethod
    def about(
        cls,
        *,
        source: str = "generated",
        data: str | None = None,
        products: int | None = 1000,
        **arguments: Any,
    ) -> About:
        """Generated or original products; files are looked for, not read."""
        missing: tuple[str, ...] = ()
        if source == "original":
            try:
                find_files(data, products)
            except ConfigError:
                missing = (f"files in {data}" if data else "$WEBSHOP_DATA",)
        where = "generated catalogue" if source == "generated" else "original files"
        slow = "may build an index of its products" if source == "original" else ""
        return replace(super().about(**arguments), source=where, finite=True, missing=missing, slow=slow)

    def expert_action(self) -> str:
        """What the expert does next, in the form that the prompt asks for."""
        return self.reply(self._expert.act(self.session))

    def reply(self, command: str) -> str:
        """In tags if the prompt is the paper's."""
        return f"<action>{command}</action>" if self.fresh_prompt else command

    def _number(self, seed: int) -> int:
        """The goal of a seed: held-out ones come first in the order of goals."""
        held_out, training = self.held_out_episodes, self.training_episodes
        assert held_out is not None and training is not None
        return (seed - FIRST_HELD_OUT_SEED) % held_out if seed >= FIRST_HELD_OUT_SEED else held_out + seed % training

    def _clicks(self) -> list[str]:
        """What is possible on the page, but for searches, of which there are too many to list."""
        return [f"click[{button}]" for button in self.session.clickables() if button != "search"]

    def _button(self, argument: str) -> str:
        """An argument, or the clickable text that differs from it in blanks only: answers are read without these."""
        return next((b for b in self.session.clickables() if " ".join(b.split()) == argument), argument)

    def _reward(self) -> Reward:
        session = self.session
        assert session.item is not None and session.product is not None
        price = float(self.catalogue.prices[session.item])
        return reward(self.goal, session.product, session.options.values(), price, self.nouns)

    def _page(self) -> str:
        if not self.fresh_prompt:
            return conversation_page(self.session)
        slots = {
            "task": self.goal.instruction,
            "observation": paper_page(self.session),
            "admissible_actions": admissible_actions(self.session),
        }
        prompt = self._template.render(history=self._history, **slots)
        return prompt if len(prompt) <= LONGEST else self._template.render(history=[], **slots)


def _catalogue(
    source: str, data: str | None, products: int | None, catalogue_seed: int, goals: GoalSource
) -> Catalogue:
    """The catalogue, made or read once in a process."""
    if source == "generated":
        if products is None or data is not None:
            key, got = ("products", products) if products is None else ("data", data)
            expected = "a number" if products is None else "null"
            raise ConfigError.wrong(key, expected=f"{expected} for generated products", got=got)
        with _loading:
            return _generated(products, catalogue_seed, goals)
    with _loading:
        return _loaded(str(built_folder(data, products)), goals)


@lru_cache(maxsize=4)
def _generated(products: int, seed: int, goals: GoalSource) -> Catalogue:
    return Catalogue.of(generate(products, seed), goals)


@lru_cache(maxsize=4)
def _loaded(folder: str, goals: GoalSource) -> Catalogue:
    return Catalogue.load(Path(folder), goals)
