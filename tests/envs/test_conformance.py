"""Every rule of the conformance check catches an env that breaks it, and a correct env passes."""

import itertools
from typing import Any

import pytest
from gymnasium import spaces

from opdlight.envs.actions import action_counts
from opdlight.envs.base import TextEnv
from opdlight.envs.conformance import check_text_env
from opdlight.errors import EnvError

Step = tuple[str, float, bool, bool, dict[str, Any]]
_counter = itertools.count()


class GuessEnv(TextEnv):
    """A correct env: guess the digit within five turns."""

    max_turns = 5

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.digit, self.turn = int(self.np_random.integers(1000)), 0
        return f"Guess the number after {self.digit}.", {}

    def step(self, action: str) -> Step:
        self.turn += 1
        right = action.strip() == str(self.digit + 1)
        truncated = not right and self.turn >= self.max_turns
        info: dict[str, Any] = {"metrics": {"wrong_guesses": float(not right)}}
        if right or truncated:
            info["success"] = right
        return "Yes." if right else "No.", float(right), right, truncated, info

    def expert_action(self) -> str:
        return str(self.digit + 1)


def test_a_correct_env_passes() -> None:
    check_text_env(GuessEnv)


class WrongSpace(GuessEnv):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Text(10)


class UnseededReset(GuessEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        return f"{next(_counter)}", {}


class NoOptions(GuessEnv):
    def reset(self, *, seed: int | None = None) -> tuple[str, dict[str, Any]]:  # type: ignore[override]
        return super().reset(seed=seed)


class EmptyText(GuessEnv):
    def step(self, action: str) -> Step:
        _, *rest = super().step(action)
        return "" if self.turn > 1 else "No.", *rest  # type: ignore[return-value]


class EmptySystemPrompt(GuessEnv):
    system_prompt = " "


class UnsoundReward(GuessEnv):
    def step(self, action: str) -> Step:
        text, _, *rest = super().step(action)
        return text, float("nan") if self.turn == 3 else 0.0, *rest  # type: ignore[return-value]


class NumberFlags(GuessEnv):
    def step(self, action: str) -> Step:
        text, reward, terminated, truncated, info = super().step(action)
        return text, reward, terminated, truncated if self.turn < 3 else int(truncated), info  # type: ignore[return-value]


class BothFlags(GuessEnv):
    def step(self, action: str) -> Step:
        text, reward, terminated, truncated, info = super().step(action)
        return text, reward, terminated or truncated, truncated, info


class EarlyTruncation(GuessEnv):
    def step(self, action: str) -> Step:
        text, reward, terminated, truncated, info = super().step(action)
        return text, reward, terminated, truncated or self.turn == 3, {"success": False} | info


class Endless(GuessEnv):
    def step(self, action: str) -> Step:
        text, reward, terminated, _, info = super().step(action)
        return text, reward, terminated, False, info


class NoMetrics(GuessEnv):
    def step(self, action: str) -> Step:
        *rest, info = super().step(action)
        if self.turn == 2:
            del info["metrics"]
        return *rest, info  # type: ignore[return-value]


class NestedMetrics(GuessEnv):
    def step(self, action: str) -> Step:
        *rest, info = super().step(action)
        return *rest, info | {"metrics": {"wrong": {"guesses": 1.0}}}  # type: ignore[return-value]


class CountsTwice(GuessEnv):
    def step(self, action: str) -> Step:
        *rest, info = super().step(action)
        counts = {"admissible_actions": 1.0, "inadmissible_actions": float(self.turn == 2)}
        return *rest, info | {"metrics": {**counts, "unparsable_actions": 0.0}}  # type: ignore[return-value]


class OnlyBad(GuessEnv):
    def step(self, action: str) -> Step:
        *rest, info = super().step(action)
        return *rest, info | {"metrics": {"unparsable_actions": 0.0}}  # type: ignore[return-value]


class IneffectiveAndInadmissible(GuessEnv):
    def step(self, action: str) -> Step:
        *rest, info = super().step(action)
        counts = action_counts(parsed=True, admissible=False) | {"ineffective_actions": 1.0}
        return *rest, info | {"metrics": counts}  # type: ignore[return-value]


class CountsTheFirstOnly(GuessEnv):
    def step(self, action: str) -> Step:
        *rest, info = super().step(action)
        counts = action_counts(parsed=True, admissible=True) if self.turn == 1 else {}
        return *rest, info | {"metrics": counts}  # type: ignore[return-value]


class NoSuccess(GuessEnv):
    def step(self, action: str) -> Step:
        *rest, info = super().step(action)
        info.pop("success", None)
        return *rest, info  # type: ignore[return-value]


class TruncatedSuccess(GuessEnv):
    def step(self, action: str) -> Step:
        *rest, info = super().step(action)
        return *rest, info | {"success": True}  # type: ignore[return-value]


class RaisesOnText(GuessEnv):
    def step(self, action: str) -> Step:
        if "ünï" in action:  # among the bad actions, never in a random text
            raise UnicodeError("ünï")
        return super().step(action)


class UnseededStep(GuessEnv):
    def step(self, action: str) -> Step:
        text, *rest = super().step(action)
        return (text if self.turn < 2 else f"No, {next(_counter)}."), *rest  # type: ignore[return-value]


class Remembers(GuessEnv):
    episodes = 0

    def step(self, action: str) -> Step:
        text, reward, terminated, truncated, info = super().step(action)
        self.episodes += terminated or truncated
        return text if self.episodes < 2 or not truncated else "You again.", reward, terminated, truncated, info


class PrepareChanges(GuessEnv):
    prepared: int | None = None

    def prepare(self, seed: int) -> None:
        self.prepared = seed

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        return super().reset(seed=seed if self.prepared is None else self.prepared)


class OneSeed(GuessEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.digit = 4
        return "Guess the number after 4.", {}


class WrongExpert(GuessEnv):
    def expert_action(self) -> str:
        return self.digit + 1  # type: ignore[return-value]


class TooManyRows(GuessEnv):
    training_episodes = 7  # it has as many as seeds


class HalfARow(GuessEnv):
    held_out_episodes = 0.5  # type: ignore[assignment]


class NoTurns(GuessEnv):
    max_turns = 0


BROKEN: list[tuple[type[GuessEnv], str]] = [
    (WrongSpace, "Rule `spaces` broken .*action_space"),
    (UnseededReset, "Rule `(gymnasium|determinism)` broken"),
    (NoOptions, "Rule `gymnasium` broken"),
    (EmptyText, "Rule `text` broken .step 2"),
    (EmptySystemPrompt, "Rule `text` broken .system_prompt"),
    (UnsoundReward, "Rule `reward` broken .step 3.*nan"),
    (NumberFlags, "Rule `flags` broken .*bool"),
    (BothFlags, "Rule `flags` broken .*not both"),
    (EarlyTruncation, "Rule `max-turns` broken .*truncated after 3 steps, but max_turns is 5"),
    (Endless, "Rule `max-turns` broken .*went on after max_turns = 5"),
    (NoTurns, "Rule `max-turns` broken .*positive int"),
    (NoMetrics, "Rule `metrics` broken .step 2"),
    (NestedMetrics, "Rule `metrics` broken .*'wrong'"),
    (CountsTwice, "Rule `actions` broken .step 2.*exactly one of admissible_actions"),
    (OnlyBad, "Rule `actions` broken .step 1"),
    (IneffectiveAndInadmissible, "Rule `actions` broken .step 1.*admissible actions only"),
    (CountsTheFirstOnly, "Rule `actions` broken .step 2.*at some steps none is counted"),
    (NoSuccess, "Rule `success` broken .*must be a bool"),
    (TruncatedSuccess, "Rule `success` broken .*terminated"),
    (RaisesOnText, "Rule `bad-action` broken .*UnicodeError"),
    (UnseededStep, "Rule `determinism` broken .*first difference at step 2"),
    (Remembers, "Rule `reuse` broken .*You again"),
    (PrepareChanges, "Rule `prepare` broken"),
    (OneSeed, "Rule `seeds` broken"),
    (TooManyRows, "Rule `rows` broken .*training_episodes is 7"),
    (HalfARow, "Rule `rows` broken .*held_out_episodes must be"),
    (WrongExpert, "Rule `expert` broken"),
]


@pytest.mark.parametrize(("env_class", "message"), BROKEN, ids=[env_class.__name__ for env_class, _ in BROKEN])
def test_a_broken_env_is_caught_by_its_rule(env_class: type[GuessEnv], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        check_text_env(env_class)


def test_something_else_than_a_text_env_is_caught() -> None:
    with pytest.raises(EnvError, match=r"Rule `gymnasium` broken .*gymnasium\.Env, but got object"):
        check_text_env(object)  # type: ignore[arg-type]


class Hidden(OneSeed):
    """The first observation is the same for all seeds; what differs has to be found out."""

    hidden_state = True


def test_hidden_state_is_declared_and_the_error_says_how() -> None:
    check_text_env(Hidden)
    with pytest.raises(EnvError, match=r"same observation: if .* declare `hidden_state = True` in the class; if all"):
        check_text_env(OneSeed)


def test_a_game_with_one_start_may_say_so() -> None:
    check_text_env(OneSeed, seeds_differ=False)
