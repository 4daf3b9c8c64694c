"""ALFWorldEnv: prompts, answers, counters, the original games' files, threads, and what is shared between envs."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import opdlight.envs  # noqa: F401
from opdlight.envs.alfworld import ALFWorldEnv, wheel
from opdlight.envs.alfworld.env import _game
from opdlight.envs.alfworld.generator import Design, generate
from opdlight.envs.alfworld.text import _parse_grammar
from opdlight.envs.base import FIRST_HELD_OUT_SEED, read_action
from opdlight.envs.conformance import check_text_env
from opdlight.errors import ConfigError, MissingDependencyError

pytestmark = pytest.mark.alfworld
SMALL: dict[str, Any] = {"receptacles": (3, 5), "objects": (2, 4), "max_turns": 12}


def make(**arguments: Any) -> ALFWorldEnv:
    env = gymnasium.make("opdlight/ALFWorld-v0", **{**SMALL, **arguments}).unwrapped
    assert isinstance(env, ALFWorldEnv)
    return env


def expert_episode(env: ALFWorldEnv, seed: int) -> tuple[list[str], bool]:
    """All observations, and whether the task was solved."""
    observation, _ = env.reset(seed=seed)
    seen = [observation]
    while True:
        observation, reward, terminated, truncated, info = env.step(env.expert_action())
        seen.append(observation)
        if terminated or truncated:
            assert reward == float(info["success"]) == float(terminated)
            assert terminated != truncated
            return seen, info["success"]


@pytest.mark.parametrize("prompt", ["conversation", "paper"])
def test_keeps_the_rules_of_a_text_env(prompt: str) -> None:
    check_text_env(lambda: make(prompt=prompt, max_turns=6))


def test_conversation_is_the_games_own_text() -> None:
    env = make()
    observation, info = env.reset(seed=0)
    assert observation.startswith("You are in the middle of a room. Looking quickly around you, you see a ")
    assert "\n\nYour task is to: " in observation
    assert env.system_prompt is not None
    assert not env.fresh_prompt
    command = info["admissible_commands"][0]
    assert command.startswith("go to ")
    observation, *_ = env.step(f"<think>Where is it?</think> {command}")
    assert observation.startswith(f"You arrive at {command.removeprefix('go to ')}. ")


def test_paper_prompt_shows_the_last_two_steps_and_what_can_be_done() -> None:
    env, plain = make(prompt="paper"), make()
    assert env.fresh_prompt
    assert env.system_prompt is None
    (prompt, info), (start, _) = env.reset(seed=0), plain.reset(seed=0)
    assert start in prompt
    assert "steps so far" not in prompt
    seen = [start]
    for turn in range(1, 5):
        command = info["admissible_commands"][turn % 3]
        prompt, _, _, _, info = env.step(f"<think>hm</think><action>{command}</action>")
        seen.append(plain.step(command)[0])
        task = start.split("Your task is to: ")[1].rstrip(".")
        assert f"Your task is to: {task}." in prompt
        assert f"taken {turn} steps" in prompt
        assert f"Your current observation is: {seen[-1]}" in prompt
        assert prompt.count("Observation ") == min(turn, 2)
        assert all(f"Observation {n}: '{seen[n - 1]}'" in prompt for n in range(max(1, turn - 1), turn + 1))
        assert all(f"'{c}'" in prompt for c in info["admissible_commands"])
        assert "<think>" in prompt
        assert "<action>" in prompt


@pytest.mark.parametrize(
    ("text", "plain", "tagged"),
    [
        ("go to desk 1", "go to desk 1", None),
        ("  go   to\ndesk 1 ", "go to desk 1", None),
        ("<think>a desk?</think>\ngo to desk 1", "go to desk 1", None),
        ("<think>x</think><action> go to desk 1 </action>", "go to desk 1", "go to desk 1"),
        ("<action>look</action> or <action>help</action>", "help", "help"),
        ("<think><action>look</action></think>help", "help", None),
        ("<think>never ends <action>look</action>", None, None),
        ("<action>look", None, None),
        ("<action> </action>", None, None),
        ("", None, None),
        ("<think>only</think>", None, None),
        ("Go to cabinet 1", "go to cabinet 1", None),
        ("go to cabinet 1.", "go to cabinet 1", None),
        ('"Go to cabinet 1."', "go to cabinet 1", None),
        ("<action>\u2018Go to Cabinet 1\u2019.</action>", "go to cabinet 1", "go to cabinet 1"),
        ("<action>a</action> and <action>look", "a", "a"),
        ("<action>look</action> or </action>", "look", "look"),
        (" . ", None, None),
    ],
)
def test_reading_an_answer(text: str, plain: str | None, tagged: str | None) -> None:
    assert read_action(text) == plain
    assert read_action(text, tags=True) == tagged


def test_bad_actions_cost_a_step_and_are_counted() -> None:
    env = make(max_turns=3)
    _, before = env.reset(seed=0)
    kinds = ("admissible_actions", "inadmissible_actions", "unparsable_actions", "ineffective_actions")
    for action, *counts in (("fly away", 0, 1, 0, 0), ("<think>", 0, 0, 1, 0), ("look", 1, 0, 0, 0)):
        observation, reward, terminated, truncated, info = env.step(action)
        assert info["metrics"] == dict(zip(kinds, counts, strict=True))
        assert (observation == "Nothing happens.") == (action != "look")
        assert info["admissible_commands"] == before["admissible_commands"]
        assert reward == 0.0
        assert not terminated
    assert truncated
    assert info["success"] is False


def test_what_was_just_said_about_the_same_state_is_ineffective() -> None:
    env = make(max_turns=20)
    _, info = env.reset(seed=0)
    go = next(c for c in info["admissible_commands"] if c.startswith("go to"))
    actions = {"look": 0, "look ": 1, go: 0, "inventory": 0, " inventory": 1, "fly": 0, "inventory ": 0, "look  ": 0}
    for action, ineffective in actions.items():
        metrics = env.step(action)[4]["metrics"]
        assert (metrics["ineffective_actions"], metrics["admissible_actions"]) == (ineffective, action != "fly")


def test_winning_on_the_last_turn_is_not_truncation() -> None:
    env = make(max_turns=100)
    turns = len(expert_episode(env, 3)[0]) - 1
    assert expert_episode(make(max_turns=turns), 3)[1]
    assert not expert_episode(make(max_turns=turns - 1), 3)[1]


def test_envs_of_a_process_share_the_game_of_a_seed() -> None:
    one, two, other = make(), make(), make(objects=(4, 4))
    _game.cache_clear()
    one.prepare(5)
    for env in (one, two, one, other):
        env.reset(seed=5)
    assert one._play.game is two._play.game
    assert one._play.game is not other._play.game
    assert _game.cache_info().misses == 2
    assert _game.cache_info().maxsize is not None


def test_threads_see_what_one_thread_sees() -> None:
    seeds = list(range(24)) * 2
    alone = [expert_episode(make(max_turns=30), seed) for seed in seeds]
    _game.cache_clear()
    _parse_grammar.cache_clear()  # 48 games, each with its own sentence, but one grammar
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda seed: expert_episode(make(max_turns=30), seed), seeds))
    assert together == alone


@pytest.mark.parametrize("expert", ["explorer", "planner", "handcoded"])
def test_sys_argv_is_left_alone(expert: str) -> None:
    before = list(sys.argv)
    make(expert=expert).reset(seed=1)
    expert_episode(make(expert=expert), 1)
    assert sys.argv == before


def write_original(root: Path, split: str, name: str, seed: int, **changes: Any) -> None:
    """A game in the layout that alfworld-download leaves."""
    design = Design(
        task_types=("pick_heat_then_place_in_recep",), rooms=("Kitchen",), receptacles=(5, 5), objects=(4, 4)
    )
    file = generate(design, seed)
    folder = root / "json_2.1.1" / split / name / "trial_T2019"
    folder.mkdir(parents=True)
    game = {"pddl_domain": file.domain, "grammar": file.grammar, "pddl_problem": file.problem, "solvable": True}
    params = {**file.targets, "object_sliced": False}
    trajectory = {"task_type": file.task_type, "pddl_params": params, "task_id": "trial_T2019"}
    (folder / "game.tw-pddl").write_text(json.dumps({**game, **{k: v for k, v in changes.items() if k in game}}))
    (folder / "traj_data.json").write_text(json.dumps({**trajectory, **changes}))


@pytest.fixture
def original_games(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_original(tmp_path, "train", "pick_heat_then_place_in_recep-Egg-None-SinkBasin-1", 0)
    write_original(tmp_path, "train", "pick_heat_then_place_in_recep-Mug-None-Cabinet-2", 1)
    write_original(tmp_path, "train", "pick_heat-unsolvable", 2, solvable=False)
    write_original(tmp_path, "train", "pick_heat-AppleSliced-3", 3)
    write_original(tmp_path, "train", "pick_and_place_with_movable_recep-4", 4)
    write_original(tmp_path, "train", "other-task-5", 5, task_type="pick_and_place_simple")
    write_original(tmp_path, "valid_seen", "pick_heat_then_place_in_recep-Cup-None-Fridge-6", 6)
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    return tmp_path


def test_original_games_are_played_from_their_files(original_games: Path) -> None:
    env = make(source="original", task_types=["pick_heat_then_place_in_recep"], max_turns=40)
    train = {env.reset(seed=seed)[0] for seed in range(10)}
    held_out = {env.reset(seed=FIRST_HELD_OUT_SEED + seed)[0] for seed in range(10)}
    assert (len(train), len(held_out)) == (2, 1) == (env.training_episodes, env.held_out_episodes)
    assert {env.reset(seed=seed)[0] for seed in (0, 1)} == train  # so many seeds show every game
    with pytest.raises(ConfigError, match=r"held_out_split.*another split than 'train'"):
        make(source="original", split="train", held_out_split="train")
    assert not train & held_out
    for expert in ("explorer", "planner", "handcoded"):
        arguments = {"source": "original", "task_types": ["pick_heat_then_place_in_recep"], "max_turns": 60}
        assert all(expert_episode(make(expert=expert, **arguments), seed)[1] for seed in (0, 1, FIRST_HELD_OUT_SEED))


def test_original_games_that_are_not_there(original_games: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"ALFWORLD_DATA.*valid_unseen"):
        make(source="original", split="valid_unseen")
    monkeypatch.setenv("ALFWORLD_DATA", str(original_games / "nowhere"))
    with pytest.raises(ConfigError, match="nowhere"):
        make(source="original")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "orginal"}, "source.*'original'"),
        ({"split": "test"}, "split"),
        ({"held_out_split": "test"}, "held_out_split"),
        ({"prompt": "papers"}, "prompt.*'paper'"),
        ({"expert": "planer"}, "expert.*'planner'"),
        ({"task_types": ["pick_heat"]}, "task_types"),
        ({"task_types": []}, "task_types.*at least one"),
        ({"rooms": ["Kichen"]}, "rooms.*'Kitchen'"),
        ({"rooms": ["Bathroom"], "task_types": ["pick_heat_then_place_in_recep"]}, "rooms.*pick_heat"),
        ({"receptacles": [2, 6]}, "receptacles.*3"),
        ({"receptacles": [6, 3]}, "receptacles"),
        ({"receptacles": [3.0, 6]}, "receptacles"),
        ({"objects": [4]}, "objects"),
        ({"max_turns": 0}, "max_turns"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**arguments)


def test_without_the_extra_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"opdlight\[alfworld\]"):
        make()
