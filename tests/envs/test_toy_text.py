"""ToyText in words, and its shortest-path expert."""

from collections import deque
from typing import Any

import gymnasium
import pytest

import opdlight.envs  # noqa: F401
from opdlight.envs.base import FIRST_HELD_OUT_SEED, read_action
from opdlight.envs.conformance import check_text_env
from opdlight.envs.toy_text import ToyTextEnv
from opdlight.errors import ConfigError, NoExpertError


def make(**arguments: Any) -> ToyTextEnv:
    env = gymnasium.make("opdlight/ToyText-v0", **arguments).unwrapped
    assert isinstance(env, ToyTextEnv)
    return env


def expert_episode(env: ToyTextEnv, seed: int) -> tuple[int, bool]:
    env.reset(seed=seed)
    for turns in range(1, 1000):
        _, reward, terminated, truncated, info = env.step(env.expert_action())
        if terminated or truncated:
            assert reward == float(info["success"])
            return turns, info["success"]
    raise AssertionError


def shortest(env: ToyTextEnv) -> int:
    """Length of a shortest path, by an independent forward search over Gymnasium's table."""
    table, start = env.game.env.P, int(env.game.env.s)
    lengths, queue = {start: 0}, deque([start])
    while queue:
        state = queue.popleft()
        for ((_, successor, reward, terminated),) in table[state].values():
            if terminated and (reward > 0 or env.game.is_goal(reward)):
                return lengths[state] + 1
            if not terminated and int(successor) not in lengths:
                lengths[int(successor)] = lengths[state] + 1
                queue.append(int(successor))
    raise AssertionError


@pytest.mark.parametrize(
    "arguments",
    [
        {}, {"size": 7}, {"is_slippery": True}, {"max_turns": 2}, {"game": "Taxi-v4"}, {"game": "CliffWalking-v1"},
        {"game": "CliffWalking-v1", "is_slippery": True},
    ],
)  # fmt: skip
def test_conformance(arguments: dict[str, Any]) -> None:
    check_text_env(lambda: make(**arguments), seeds_differ=arguments.get("game") != "CliffWalking-v1")


@pytest.mark.parametrize("arguments", [{}, {"size": 3}, {"size": 9}, {"game": "Taxi-v4"}, {"game": "CliffWalking-v1"}])
def test_the_expert_takes_a_shortest_path(arguments: dict[str, Any]) -> None:
    env = make(**arguments)
    for seed in (*range(25), FIRST_HELD_OUT_SEED, 2 * 10**9):
        env.reset(seed=seed)
        expected = shortest(env)
        assert expert_episode(env, seed) == (expected, True)


def test_training_and_held_out_seeds_share_no_start() -> None:
    for arguments in ({"size": 3}, {"game": "Taxi-v4"}):
        env = make(**arguments)
        training = {env.reset(seed=seed)[0] for seed in range(600)}
        held_out = {env.reset(seed=FIRST_HELD_OUT_SEED + seed)[0] for seed in range(300)}
        assert len(held_out) > 5
        assert len(training) > 20
        assert not training & held_out
    cliff = ToyTextEnv("CliffWalking-v1")  # one start: nothing can be held out, as its docstring says
    assert cliff.reset(seed=0) == cliff.reset(seed=FIRST_HELD_OUT_SEED)


def test_words_say_where_things_are() -> None:
    env = make(game="CliffWalking-v1")
    assert env.reset(seed=0)[0] == "You are at row 4, column 1. The goal is at row 4, column 12."
    assert env.step("move up")[0].startswith("You are at row 3, column 1.")
    fallen = env.step("move right") and env.step("move down")
    assert fallen[0].startswith("You are at row 4, column 1.")
    assert fallen[4]["metrics"]["game_return"] == -100.0
    lake = make(size=4)
    text, _ = lake.reset(seed=3)
    for row, cells in enumerate(lake.game.cells):  # type: ignore[attr-defined]
        for column, cell in enumerate(cells):
            assert (f"row {row + 1}, column {column + 1}" in text.split("You are")[0]) == (cell == "H")


def test_what_the_lake_says_around_you_is_what_happens() -> None:
    env = make(size=5)
    for seed in range(10):
        text, _ = env.reset(seed=seed)
        around = dict(part.split(": ") for part in text.rpartition("Around you: ")[2].rstrip(".").split(", "))
        for side, cell in around.items():
            before = env.reset(seed=seed)[0].partition("You are at ")[2]
            after, _, terminated, _, info = env.step(f"move {side}")
            assert terminated == (cell in {"hole", "goal"})
            assert (after.partition("You are at ")[2] == before) == (cell == "edge")
            assert info.get("success", False) == (cell == "goal")


def test_the_free_ways_of_the_taxi_are_free() -> None:
    env = make(game="Taxi-v4")
    for seed in range(20):
        text, _ = env.reset(seed=seed)
        free = text.partition("free to the ")[2].partition(".")[0].split(", ")
        for side in ("south", "north", "east", "west"):
            env.reset(seed=seed)
            assert (env.step(f"move {side}")[0] != text) == (side in free)


def test_bad_actions_cost_a_turn_and_change_nothing() -> None:
    env = make(max_turns=3)
    start = env.reset(seed=0)[0].partition("You are")[2]
    for turn, action in enumerate(["", "<think>move right", "go home"], start=1):
        text, reward, terminated, truncated, info = env.step(action)
        assert text.startswith("That is no action. Answer with one of: move left, ")
        assert text.endswith(start)
        assert (reward, terminated, truncated) == (0.0, False, turn == 3)
        kinds = ("unparsable_actions", "inadmissible_actions", "admissible_actions", "ineffective_actions")
        assert [info["metrics"][kind] for kind in kinds] == [turn < 3, turn == 3, 0, 0]
    assert info["success"] is False


def test_an_action_that_changes_nothing_is_admissible_and_ineffective() -> None:
    for game, actions in {
        "CliffWalking-v1": {"move left": 1, "move up": 0, "move right": 0, "move down": 0},
        "FrozenLake-v1": {"move left": 1, "move up": 1},  # against the edges
    }.items():
        env = make(game=game)
        env.reset(seed=0)
        for action, ineffective in actions.items():
            metrics = env.step(action)[4]["metrics"]
            assert (metrics["admissible_actions"], metrics["ineffective_actions"]) == (1, ineffective)
    env = make(game="Taxi-v4")
    env.reset(seed=0)
    assert env.step("drop off")[4]["metrics"]["ineffective_actions"] == 1  # nobody is in the taxi


def test_reaching_the_goal_on_the_last_turn_is_success_and_not_truncation() -> None:
    env = make(game="CliffWalking-v1", max_turns=13)
    env.reset(seed=0)
    for _ in range(13):
        _, _, terminated, truncated, info = env.step(env.expert_action())
    assert (terminated, truncated, info["success"]) == (True, False, True)
    assert expert_episode(make(game="CliffWalking-v1", max_turns=12), 0) == (12, False)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("move left", "move left"), (" Move  LEFT.\n", "move left"), ("<think>up?</think>move left", "move left"),
        ("I say <action>move left</action> now", "move left"),
        ("<action>a</action><action>move left</action>", "move left"),
        ("<think>move left", None), ("'Move left.'", "move left"), ("I move left", "i move left"),
    ],
)  # fmt: skip
def test_read_action(text: str, action: str | None) -> None:
    assert read_action(text) == action


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"game": "Taxi-v3"}, "`game`.*did you mean 'Taxi-v4'"), ({"size": 2}, "`size`"), ({"size": 21}, "`size`"),
        ({"game": "Taxi-v4", "size": 4}, "`size`.*only FrozenLake-v1"), ({"max_turns": 1}, "`max_turns`"),
        ({"game": "Taxi-v4", "is_slippery": True}, "`is_slippery`"),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ToyTextEnv(**arguments)


def test_slippery_ice_slips_and_has_no_expert() -> None:
    env = make(is_slippery=True, size=8)
    assert "slippery" in (env.system_prompt or "")
    places = set()
    for seed in range(30):
        env.reset(seed=seed)
        places.add(env.step("move right")[0].partition(". The goal")[0])
    assert len(places) > 2
    with pytest.raises(NoExpertError, match="is_slippery"):
        env.expert_action()
