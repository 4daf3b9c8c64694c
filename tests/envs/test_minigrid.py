"""MiniGrid's and BabyAI's levels in words: what is said is what is there, and the package's own bot solves them."""

import re
from typing import Any

import numpy as np
import pytest
from minigrid.core.world_object import Ball, Box, Door, Key, Wall

import opdlight.envs.minigrid_env
from opdlight.data.tasks import Task, TaskMixture
from opdlight.envs.actions import action_counts
from opdlight.envs.base import FIRST_HELD_OUT_SEED
from opdlight.envs.conformance import check_text_env
from opdlight.envs.minigrid_env import MiniGridEnv
from opdlight.envs.wrapped import make_text_env
from opdlight.errors import ConfigError, MissingDependencyError, NoExpertError
from opdlight.sft.demonstrations import demonstrate

# single rooms, doors, locked doors and boxes, things to be moved
LEVELS = ("BabyAI-GoToLocal-v0", "BabyAI-Synth-v0", "BabyAI-UnlockPickupDist-v0", "BabyAI-PutNextLocal-v0")
SIX = ["turn left", "turn right", "go forward", "pick up", "drop", "toggle"]


def walk(level: str, seed: int, steps: int) -> Any:
    """A game that yields (game, text) along a walk of random and of expert actions, until the level ends."""
    env, random = MiniGridEnv(level, max_turns=steps, separate_starts=False), np.random.default_rng(seed)
    text, info = env.reset(seed=seed)
    while True:
        yield env, text
        action = env.expert_action() if random.random() < 0.5 else str(random.choice(info["admissible_commands"]))
        text, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            return


def world(env: MiniGridEnv, ahead: int, right: int) -> tuple[int, int]:
    """The cell of the grid so far from the player."""
    game: Any = env.env.unwrapped
    x, y = game.agent_pos + ahead * game.dir_vec + right * game.right_vec
    return int(x), int(y)


def in_words(thing: Any) -> str:
    door = {True: "open ", False: "locked " if getattr(thing, "is_locked", False) else "closed "}
    words = f"{door[thing.is_open] if thing.type == 'door' else ''}{thing.color} {thing.type}"
    return f"an {words}" if words.startswith("open") else f"a {words}"


@pytest.mark.parametrize("level", ["BabyAI-GoToObj-v0", "BabyAI-UnlockPickup-v0", "MiniGrid-DoorKey-5x5-v0"])
def test_the_contract_holds(level: str) -> None:
    check_text_env(lambda: MiniGridEnv(level, max_turns=25))


def test_a_level_without_opdlight_s_class_needs_the_words_only() -> None:
    adapter = {"observation": "opdlight.envs.minigrid_words.describe", "max_turns": 12}
    env = Task(env={"id": "minigrid:BabyAI-GoToObjS4-v0", "adapter": adapter}, teacher="t").make_env()
    assert "actions: left, right, forward, pickup, drop, toggle, done." in (env.system_prompt or "")
    check_text_env(lambda: make_text_env("minigrid:BabyAI-GoToObjS4-v0", adapter=adapter))


def test_an_argument_that_a_level_does_not_take_is_named() -> None:
    env = {"id": "minigrid:BabyAI-GoToObj-v0", "room_sizee": 3}
    with pytest.raises(ConfigError, match=r"`task\.tasks\.a\.env`: Cannot make .*'room_sizee'"):
        TaskMixture({"a": Task(env=env, teacher="t")}).check_envs()


@pytest.mark.parametrize("level", LEVELS)
def test_every_thing_in_view_is_told_where_it_is(level: str) -> None:
    told = 0
    for seed in range(4):
        for env, text in walk(level, seed, 40):
            game: Any = env.env.unwrapped
            assert (f"Your task: {game.mission}.\n" in text) == (game.step_count == 0)
            seen = re.search(r"^You see (.*)\.$", text, re.MULTILINE)
            assert seen is not None
            said = set()
            for item in () if seen[1] == "no things" else seen[1].split("; "):
                match = re.fullmatch(r"(.*?)(?: (\d+) ahead,?)?(?: (\d+) (left|right))?", item)
                assert match is not None
                words, ahead, side, where = match.groups()
                cell = world(env, int(ahead or 0), int(side or 0) * (-1 if where == "left" else 1))
                assert in_words(game.grid.get(*cell)) == words
                said.add(cell)
            there = {(x, y) for x in range(game.width) for y in range(game.height) if game.grid.get(x, y) is not None}
            things = {c for c in there if game.grid.get(*c).type != "wall" and c != tuple(game.agent_pos)}
            assert said == {cell for cell in things if game.agent_sees(*cell)}
            carried = "nothing" if game.carrying is None else in_words(game.carrying)
            assert text.endswith(f"You carry {carried}.")
            told += len(said)
    assert told > 30


@pytest.mark.parametrize("level", LEVELS)
def test_the_ways_are_as_free_as_they_are_told(level: str) -> None:
    ends = set()
    for env, text in walk(level, 1, 40):
        game: Any = env.env.unwrapped
        for name, step in {"Ahead": (1, 0), "Left": (0, -1), "Right": (0, 1)}.items():
            told = re.search(rf"{name}: (?:(\d+) free cells?)?(?:, then )?(.*?)\.(?: |$)", text, re.MULTILINE)
            assert told is not None
            free, end = int(told[1] or 0), told[2]
            assert all(game.grid.get(*world(env, step[0] * n, step[1] * n)) is None for n in range(1, free + 1))
            last = world(env, step[0] * (free + 1), step[1] * (free + 1))
            if end in ("not seen", " or more"):
                assert (end == " or more") == (free > 0)
                assert game.relative_coords(*last) is None or not game.gen_obs_grid()[1][game.relative_coords(*last)]
            else:
                assert end == ("a wall" if game.grid.get(*last).type == "wall" else in_words(game.grid.get(*last)))
            ends.add(end.split()[-1])
    assert {"more", "wall"} <= ends


@pytest.mark.parametrize("level", LEVELS)
def test_an_action_is_ineffective_if_it_changes_nothing(level: str) -> None:
    counts = {True: 0, False: 0}
    for seed in range(3):
        random = np.random.default_rng(seed)
        env = MiniGridEnv(level, max_turns=60, separate_starts=False)
        env.reset(seed=seed)
        game: Any = env.env.unwrapped
        for turn in range(60):
            before = (game.hash(), game.carrying)
            action = env.expert_action() if turn % 2 else str(random.choice(SIX))
            _, _, terminated, truncated, info = env.step(action)
            wasted = (game.hash(), game.carrying) == before
            assert info["metrics"] == action_counts(parsed=True, admissible=True, ineffective=wasted)
            counts[wasted] += 1
            if terminated or truncated:
                break
        assert env.step("dance")[4]["metrics"] == action_counts(parsed=True, admissible=False, ineffective=False)
        assert env.step(" ")[4]["metrics"] == action_counts(parsed=False, admissible=False, ineffective=False)
    assert min(counts.values()) > 5


@pytest.mark.parametrize(
    ("front", "carried", "expected"),
    [
        (None, None, {"go forward"}),
        (None, Key("red"), {"go forward", "drop"}),
        (Wall(), Key("red"), set()),
        (Ball("blue"), None, {"pick up"}),
        (Ball("blue"), Key("red"), set()),
        (Box("grey"), None, {"pick up", "toggle"}),
        (Box("grey"), Ball("red"), {"toggle"}),
        (Door("red"), None, {"toggle"}),
        (Door("red", is_open=True), None, {"go forward", "toggle"}),
        (Door("red", is_locked=True), None, set()),
        (Door("red", is_locked=True), Key("blue"), set()),
        (Door("red", is_locked=True), Ball("red"), set()),
        (Door("red", is_locked=True), Key("red"), {"toggle"}),
    ],
)
def test_what_can_be_done_with_a_thing(front: Any, carried: Any, expected: set[str]) -> None:
    env = MiniGridEnv("BabyAI-GoToObjS4-v0")
    env.reset(seed=0)
    game: Any = env.env.unwrapped
    game.grid.set(*game.front_pos, front)
    game.carrying = carried
    assert {name for name in SIX if not env.ineffective(env.actions.read(name))} == {
        "turn left",
        "turn right",
        *expected,
    }


@pytest.mark.parametrize(
    ("level", "turns"),
    [
        ("BabyAI-GoToObj-v0", 24),
        ("BabyAI-PickupLoc-v0", 24),
        ("BabyAI-PutNextLocal-v0", 40),
        ("BabyAI-OpenDoor-v0", 30),
    ],
)
def test_the_bot_solves_a_level(level: str, turns: int) -> None:
    env = MiniGridEnv(level, max_turns=turns)
    for seed in (*range(6), FIRST_HELD_OUT_SEED, 2 * 10**9):
        env.reset(seed=seed)
        rewards, over = list[float](), False
        while not over:
            _, reward, terminated, truncated, info = env.step(env.expert_action())
            rewards.append(reward)
            over = terminated or truncated
        assert info["success"] is True
        assert info["metrics"] == action_counts(parsed=True, admissible=True, ineffective=False)
        assert rewards[:-1] == [0.0] * (len(rewards) - 1)
        assert rewards[-1] == pytest.approx(1 - 0.9 * len(rewards) / turns, abs=1e-12)


def test_the_bot_goes_on_after_detours_and_is_lost_without_an_error() -> None:
    task = Task(env={"id": "opdlight/MiniGrid-v0", "level": "BabyAI-GoToLocal-v0"}, teacher="t")
    made = [demonstrate("babyai", task, seed, 0.3) for seed in range(12)]
    assert sum(demonstration.success for demonstration in made) > 9
    assert any(not step.learn for demonstration in made for step in demonstration.steps)
    env = MiniGridEnv("BabyAI-KeyInBox-v0", max_turns=80)  # the key that it needs is in a box, which it does not open
    env.reset(seed=0)
    for _ in range(80):
        action = env.expert_action()
        *_, truncated, _ = env.step(action)
    assert (action, truncated) == ("turn left", True)


def test_a_plan_that_is_carried_out_in_vain_is_given_up() -> None:
    env = MiniGridEnv("BabyAI-GoToObj-v0")
    env.reset(seed=0)
    env.expert_action()
    env._bot.bot.stack.clear()
    for _ in range(3):
        env.step("turn right")
        assert env.expert_action() == "turn left"


def test_the_bot_gives_up_when_a_box_is_opened() -> None:
    env = MiniGridEnv("BabyAI-GoToObj-v0")
    env.reset(seed=0)
    game: Any = env.env.unwrapped
    game.grid.set(*game.front_pos, Box("grey"))
    env.expert_action()
    env.step("toggle")
    assert game.grid.get(*game.front_pos) is None
    assert env.expert_action() == "turn left"


def test_a_plan_that_grows_for_ever_is_given_up() -> None:
    env = MiniGridEnv("BabyAI-GoToImpUnlock-v0", max_turns=200, separate_starts=False)
    env.reset(seed=6)
    for _ in range(200):
        env.step(env.expert_action())
    assert env.expert_action() == "turn left"


def test_levels_of_other_actions_and_without_a_bot() -> None:
    assert MiniGridEnv("BabyAI-GoToObj-v0").actions.names == tuple(SIX)
    assert MiniGridEnv("MiniGrid-GoToDoor-5x5-v0").actions.names == (*SIX, "done")
    env = MiniGridEnv("MiniGrid-Dynamic-Obstacles-5x5-v0")
    assert env.actions.names == tuple(SIX[:3])
    assert "pick up" not in (env.system_prompt or "")
    _, info = env.reset(seed=0)
    assert info["admissible_commands"] == SIX[:3]
    assert env.step("go forward")[4]["metrics"] == action_counts(parsed=True, admissible=True)
    assert [MiniGridEnv.about(level=f"{family}-X-v0").expert for family in ("BabyAI", "MiniGrid")] == [True, False]
    assert MiniGridEnv.about().expert
    with pytest.raises(NoExpertError, match="DynamicObstaclesEnv has no expert"):
        env.expert_action()
    with pytest.raises(ConfigError, match=r"`separate_starts` to be false"):
        [MiniGridEnv("MiniGrid-Empty-5x5-v0").reset(seed=seed) for seed in (0, FIRST_HELD_OUT_SEED)]


def test_training_and_held_out_starts_differ() -> None:
    env = MiniGridEnv("BabyAI-GoToObjS4-v0")
    sides = [{env.reset(seed=first + n)[0] for n in range(150)} for first in (0, FIRST_HELD_OUT_SEED)]
    assert min(map(len, sides)) > 10
    assert not sides[0] & sides[1]


def test_goals_and_lava_are_named() -> None:
    text, _ = MiniGridEnv("MiniGrid-LavaGapS5-v0", separate_starts=False).reset(seed=1)
    assert "a lava" not in text
    assert re.search(r"[;e] lava \d", text)
    text, _ = MiniGridEnv("MiniGrid-Empty-5x5-v0", separate_starts=False).reset(seed=0)
    assert "You see a green goal 2 ahead, 2 right." in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": "BabyAI-GoToObjj-v0"}, r"`level` to be a known name \(did you mean 'BabyAI-GoToObj-v0'\?\)"),
        ({"level": "FrozenLake-v1"}, r"`level` to be "),
        ({"max_turns": 0}, r"`max_turns` to be a positive number"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MiniGridEnv(**arguments)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opdlight.envs.minigrid_env, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'opdlight\[minigrid\]'"):
        MiniGridEnv()


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    env = MiniGridEnv("BabyAI-PutNextLocal-v0")  # one of those that draw until a mission makes sense
    for seed in range(30):
        env.reset(seed=seed)
    assert capfd.readouterr() == ("", "")
