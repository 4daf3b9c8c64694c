"""TextWorldEnv: a transcript by hand, counters, prompts, the split of seeds, files of one's own, and its expert."""

import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from textworld.generator import QuestGenerationError

import opdlight.envs  # noqa: F401
from opdlight.config import TrainConfig, compose, instantiate
from opdlight.envs.actions import INADMISSIBLE, INEFFECTIVE, UNPARSABLE, WASTED
from opdlight.envs.base import FIRST_HELD_OUT_SEED, on_side_of
from opdlight.envs.conformance import check_text_env
from opdlight.envs.textworld import TextWorldEnv, generator
from opdlight.envs.textworld import env as module
from opdlight.envs.wrapped import make_text_env
from opdlight.errors import ConfigError, MissingDependencyError

pytestmark = pytest.mark.alfworld
TINY: dict[str, Any] = {"world_size": 2, "nb_objects": 3, "quest_length": 2}
COIN: dict[str, Any] = {"game": "tw-coin_collector", "level": 3}


def make(**arguments: Any) -> TextWorldEnv:
    env = make_text_env("opdlight/TextWorld-v0", **arguments).unwrapped
    assert isinstance(env, TextWorldEnv)
    return env


def expert_episode(env: TextWorldEnv, seed: int) -> list[Any]:
    """Everything that is read and given until the end; checks that rewards add up to the score."""
    observation, info = env.reset(seed=seed)
    transcript: list[Any] = [observation, info["admissible_commands"]]
    total = 0.0
    while True:
        assert env.expert_action() == env.expert_action()
        observation, reward, terminated, truncated, info = env.step(env.expert_action())
        assert not info["metrics"]["inadmissible_actions"] and not info["metrics"]["unparsable_actions"]
        total += reward
        transcript += [observation, reward, info["admissible_commands"]]
        if terminated or truncated:
            assert info["success"] and terminated and total == pytest.approx(1.0)
            return transcript


@pytest.mark.parametrize("arguments", [TINY, {**TINY, "prompt": "paper"}])
def test_keeps_the_rules_of_a_text_env(arguments: dict[str, Any]) -> None:
    check_text_env(lambda: make(max_turns=6, **arguments))


def test_a_game_by_hand() -> None:
    """Seed 0 is what `tw-make custom --world-size 3 --nb-objects 6 --quest-length 3 --seed 0` makes."""
    env = make(objective="brief", max_turns=12)
    observation, info = env.reset(seed=0)
    cellar = (
        "-= Cellar =-\nYou've entered a cellar. You start to take note of what's in the room.\n\n"
        "You lean against the wall, inadvertently pressing a secret button. The wall opens up to reveal a locker.{0}"
        "\n\nYou need an unguarded exit? You should try going west."
    )
    task = "Your objective is to throw the pair of headphones on the floor of the cellar."
    assert observation == f"{task}\n\n{cellar.format('')}\n\nThere is a key on the floor."
    assert info["admissible_commands"] == [
        "drop mop", "examine key", "examine locker", "examine mop", "go west", "inventory", "look", "open locker",
        "take key",
    ]  # fmt: skip
    assert env.system_prompt and "unlock X with K" in env.system_prompt and not env.fresh_prompt
    assert (env.training_episodes, env.held_out_episodes) == (None, None)
    for action, expected in (
        ("<think>Hm.</think> Open  the locker", "That is not possible here."),
        ("'Open Locker'.", "You open the locker, revealing a pair of headphones."),
        ("look", f"{cellar.format(' The locker contains a pair of headphones.')}\n\nThere is a key on the floor."),
        ("drop mop", "You drop the mop on the ground."),
        ("look", f"{cellar.format(' The locker contains a pair of headphones.')}\n\n"
                 "There is a mop and a key on the floor."),
        ("inventory", "You are carrying nothing."),
        ("take pair of headphones from locker", "You take the pair of headphones from the locker."),
        ("inventory", "You are carrying: a pair of headphones."),
        ("<think>", "That is not possible here."),
        ("examine mop", env._play.game.infos["o_1"].desc),
    ):  # fmt: skip
        observation, reward, terminated, truncated, info = env.step(action)
        assert observation == expected and (reward, terminated, truncated) == (0.0, False, False)
        wasted = {name for name in WASTED if info["metrics"][name]}
        if action.endswith("the locker"):
            assert wasted == {INADMISSIBLE}
        else:
            assert wasted == ({UNPARSABLE} if action == "<think>" else set())
    assert env.step("examine mop")[-1]["metrics"][INEFFECTIVE] == 1.0  # the same again
    observation, reward, terminated, truncated, info = env.step("drop pair of headphones")
    assert observation == (
        "You drop the pair of headphones on the ground.\n\nYour score has just gone up by one point.\n\n"
        "*** The End ***\n\nYou scored 1 out of a possible 1, in 11 turns."
    )
    assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)
    assert info["admissible_commands"] == []


def test_out_of_turns_and_lost_are_no_success() -> None:
    env = make(**TINY, max_turns=2)
    env.reset(seed=0)
    env.step("look")
    *_, terminated, truncated, info = env.step("fly")
    assert (terminated, truncated, info["success"]) == (False, True, False)
    hunt = make(game="tw-treasure_hunter", level=1)
    lost = next(seed for seed in range(20) if one_random_game(hunt, seed) == "lost")
    assert hunt._play.lost and "*** You lost! ***" in hunt._observation and lost >= 0


def one_random_game(env: TextWorldEnv, seed: int) -> str:
    _, info = env.reset(seed=seed)
    choice = random.Random(seed)
    while True:
        _, reward, terminated, truncated, info = env.step(choice.choice(info["admissible_commands"]))
        if terminated or truncated:
            assert info["success"] == (reward > 0)
            return "won" if info["success"] else "lost" if terminated else "out of turns"


@pytest.mark.parametrize(
    ("count", "arguments"),
    [
        (20, {}),
        (3, {"world_size": 5, "nb_objects": 8, "quest_length": 4}),
        (3, {"game": "tw-simple"}),
        (2, {"game": "tw-simple", "rewards": "sparse", "objective": "none"}),
        (3, COIN),
        (3, {"game": "tw-treasure_hunter", "level": 5}),
    ],
)
def test_the_expert_wins(count: int, arguments: dict[str, Any]) -> None:
    env = make(**arguments)
    for seed in (*range(count - 1), FIRST_HELD_OUT_SEED):
        expert_episode(env, seed)


def test_the_expert_goes_on_after_detours() -> None:
    env, won = make(), 0
    for seed in range(10):
        _, info = env.reset(seed=seed)
        choice = random.Random(seed)
        for _ in range(6):
            detours = [command for command in info["admissible_commands"] if not command.startswith("eat")]
            if detours:
                *_, info = env.step(choice.choice(detours))
        while "success" not in info:
            *_, info = env.step(env.expert_action())
        won += info["success"]
    assert won == 10


def test_the_expert_looks_around_where_nothing_helps() -> None:
    env = make(game="tw-simple")
    _, info = env.reset(seed=1)
    while not (eat := [c for c in info["admissible_commands"] if c.startswith("eat")]):
        *_, info = env.step(env.expert_action())
    *_, terminated, _, info = env.step(eat[0])  # the dinner
    assert terminated and not info["success"] and env.expert_action() == "look"


@pytest.mark.parametrize("arguments", [TINY, {**COIN, "level": 2}])
def test_training_and_held_out_seeds_share_no_game(arguments: dict[str, Any]) -> None:
    design = make(**arguments).design
    for first in (0, FIRST_HELD_OUT_SEED):
        contents = {seed: generator._content(module._game(design, seed)) for seed in range(first, first + 8)}
        assert len(set(contents.values())) > 1
        assert all(on_side_of(seed, content) for seed, content in contents.items())


def test_settings_with_too_few_games_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "_content", lambda game: "always the same")
    monkeypatch.setattr(generator, "_DRAWS", 3)
    design = make(game="tw-coin_collector", level=1).design
    with pytest.raises(ConfigError, match=r"level.*do not share one"):
        [generator.generate(design, seed) for seed in (0, FIRST_HELD_OUT_SEED)]


def test_threads_see_what_one_thread_sees() -> None:
    episodes: list[tuple[dict[str, Any], int]] = [(a, s) for s in range(4) for a in (TINY, COIN)] * 2
    alone = [expert_episode(make(**arguments), seed) for arguments, seed in episodes]
    module._generated.cache_clear()
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda episode: expert_episode(make(**episode[0]), episode[1]), episodes))
    assert together == alone


def test_another_process_sees_the_same() -> None:
    code = (
        "import json, opdlight.envs; from opdlight.envs.wrapped import make_text_env as make\n"
        "print(json.dumps([make('opdlight/TextWorld-v0', game=g).reset(seed=7) for g in ('custom', 'tw-simple')]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(run.stdout) == [list(make(game=game).reset(seed=7)) for game in ("custom", "tw-simple")]


def test_paper_prompt() -> None:
    env, plain = make(prompt="paper", **TINY), make(**TINY)
    (prompt, info), (start, _) = env.reset(seed=0), plain.reset(seed=0)
    task, _, room = start.partition("\n\n")
    assert f"Your task is: {task}\n" in prompt and f"Your current observation is: {room}\n" in prompt
    assert "steps so far" not in prompt and env.system_prompt is None and env.fresh_prompt
    command = info["admissible_commands"][0]
    second, *_, info = env.step(f"<action>{command}</action>")
    assert f"[Observation 1: '{room}', Action 1: '{command}']" in second and "now at step 2" in second
    assert all(f"'{c}'" in second for c in info["admissible_commands"])
    assert env.expert_action().startswith("<action>")
    assert env.step("look")[-1]["metrics"]["unparsable_actions"] == 1.0
    unknown = make(prompt="paper", objective="none", **TINY)
    assert task not in unknown.reset(seed=0)[0] and "Find out what there is to do" in unknown.reset(seed=0)[0]


def test_a_name_with_capitals_can_be_typed() -> None:
    env = make(world_size=5, nb_objects=14, quest_length=2)
    for seed in range(20):
        _, info = env.reset(seed=seed)
        capitals = [command for command in info["admissible_commands"] if command != command.lower()]
        if capitals:
            assert env.step(capitals[0].lower())[-1]["metrics"]["inadmissible_actions"] == 0.0
            return
    pytest.fail("no game has such a name")


def test_the_shipped_task() -> None:
    own = ["task.tasks.textworld.teacher=lab/teacher-sums", "model.max_model_len=4096"]
    cfg = compose("train", TrainConfig, ["task=textworld", *own])
    mixture = instantiate(cfg.task)
    mixture.check_envs()
    env = mixture.tasks["textworld"].make_env()
    assert (env.max_turns, env.fresh_prompt) == (20, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"game": "tw-simpel"}, "game.*'tw-simple'"),
        ({"rewards": "dens"}, "rewards.*'dense'"),
        ({"objective": "detail"}, "objective.*'detailed'"),
        ({"prompt": "papers"}, "prompt.*'paper'"),
        ({"world_size": 0}, "world_size.*positive"),
        ({"max_turns": 0}, "max_turns.*positive"),
        ({"game": "tw-treasure_hunter", "level": 31}, "level.*at most 30"),
        ({"held_out_games": "x"}, "held_out_games.*null"),
        ({"games": "nowhere"}, "games.*existing folder or file.*nowhere"),
        ({"games": []}, "games.*folder or a list"),
        ({"prompt_template": "x.jinja"}, "prompt.*'paper'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**arguments)


def test_worlds_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"level.*100 rooms"):
        make(game="tw-coin_collector", level=180).reset(seed=0)

    def too_long(options: Any) -> Any:
        raise QuestGenerationError("no such quest")

    monkeypatch.setattr(generator, "make_game", too_long)
    with pytest.raises(ConfigError, match=r"quest_length.*fits the world.*60 in 2 rooms"):
        make(world_size=2, nb_objects=2, quest_length=60).reset(seed=0)


def test_names_its_extra_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"opdlight\[alfworld\]"):
        make()


def test_what_is_listed_of_it(tmp_path: Path) -> None:
    about = TextWorldEnv.about(game="tw-simple")
    assert (about.source, about.finite, about.expert, about.missing) == ("generated", False, True, ())
    own = TextWorldEnv.about(games=[str(tmp_path), str(tmp_path / "none.z8")])
    assert (own.source, own.finite, own.missing) == ("files of your own", True, (f"games in {tmp_path}/none.z8",))


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expert_episode(make(game="tw-simple"), 12345)
    assert not list(tmp_path.iterdir())
