"""`python -m opdlight.tasks`: what it says of each task, without making environments or loading models."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import opdlight.envs  # noqa: F401
from opdlight.config import CONF
from opdlight.data.tasks import Task
from opdlight.errors import ConfigError
from opdlight.tasks import new
from opdlight.tasks.detail import detail
from opdlight.tasks.found import FoundOption, env_facts, find_option, find_tasks, own_folder, task_files
from opdlight.tasks.table import LEGEND, environment_table, registered, task_table

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(file.stem for file in (CONF / "task").glob("*.yaml"))


def text(table: object, width: int) -> str:
    console = Console(width=width, markup=False, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


@pytest.fixture(scope="module")
def shipped() -> dict[str, FoundOption]:
    return {name: find_option(name, None) for name in SHIPPED}


@pytest.mark.parametrize("name", SHIPPED)
def test_each_task_has_what_the_table_needs(name: str, shipped: dict[str, FoundOption]) -> None:
    option = shipped[name]
    assert option.error == "", "the file must compose alone, beside model=lab"
    assert option.comment, "begin the file with a comment that says what the task is"
    for task in option.tasks:
        about = task.facts.about
        how = "set `source` and `licence` in the class, or override `TextEnv.about` where they depend on its arguments"
        assert about.source and about.licence, f"{task.env['id']}: {how}"
        assert task.facts.turns is not None, "the environment's class must derive from TextEnv"


@pytest.mark.parametrize("width", [100, 160])
def test_the_tables_fit(width: int, shipped: dict[str, FoundOption], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opdlight.tasks.table.narrow", lambda: width < 112)
    listed = text(task_table(shipped.values()), width)
    environments = text(environment_table(), width)
    assert all(len(line.rstrip()) <= width for line in (listed + environments).splitlines())
    assert [line.split()[0] for line in listed.splitlines() if line[:1].isalpha()] == ["task", *SHIPPED]
    assert [line.split()[0] for line in environments.splitlines() if line.startswith("opdlight/")] == registered()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WEBSHOP_DATA", raising=False)
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))

    def missing(name: str) -> tuple[str, ...]:
        return tuple(what for task in find_option(name, None).shown for what in task.facts.about.missing)

    assert missing("sums") == ()
    assert missing("math_dataset") == ("env.path", "teacher"), "??? in the file"
    assert missing("paper_alfworld")[-1] == "$ALFWORLD_DATA"
    assert "$WEBSHOP_DATA" in missing("paper_webshop")
    assert "teacher" in missing("paper_math"), "lab has no such teacher"


def test_facts_follow_the_arguments_of_the_file(shipped: dict[str, FoundOption]) -> None:
    (lake,) = shipped["frozen_lake"].tasks
    assert (lake.facts.turns, lake.facts.episodes, lake.facts.about.expert) == (12, None, True)
    option = shipped["paper_math"]
    assert [task.name for task in option.shown] == ["math"], "the others are only evaluated"
    assert option.tasks[0].facts.about.source == "DAPO-Math-17k + MATH-500"
    assert [task.trained for task in option.tasks].count(False) == 5
    assert [task.name for task in find_tasks("paper_math.aime24", None)[1]] == ["aime24"]


OWN = """import gymnasium
from opdlight.envs.base import TextEnv

class Few(TextEnv):
    training_episodes, held_out_episodes, max_turns = 900, 100, 7

gymnasium.register(id="Few-v0", entry_point=Few, max_episode_steps=5)
"""
TASK = """# a few
_target_: opdlight.data.TaskMixture
tasks:
  few:
    _target_: opdlight.data.Task
    env: {id: "%s"}
    teacher: lab/teacher-sums
"""


@pytest.fixture
def mine(beside: Path) -> Path:
    """A folder of a user's: two right tasks, a broken file, and one of the name of a task of opdlight's."""
    folder = beside / "conf" / "task"
    folder.mkdir(parents=True)
    (beside / "own.py").write_text(OWN)
    (folder / "few.yaml").write_text(TASK % "own:Few-v0")
    (folder / "lost.yaml").write_text(TASK % "nowhere:Lost-v0")
    (folder / "broken.yaml").write_text("tasks: [")
    (folder / "sums.yaml").write_text(TASK % "own:Few-v0")
    new.write("maze", "many", Path("."))
    return beside


def test_tasks_of_one_s_own_come_first_and_a_wrong_one_says_why(mine: Path) -> None:
    own = own_folder(None)
    assert own == Path("conf")
    assert list(task_files(own))[:5] == ["broken", "few", "lost", "maze", *SHIPPED[:1]]
    few = find_option("few", own)
    (task,) = few.tasks
    assert (few.own, few.file, few.error) == (True, Path("conf/task/few.yaml"), "")
    assert (task.facts.turns, task.facts.episodes) == (5, (900, 100)), "the registration cuts at 5"
    assert not find_option("sums", own).own, "of two of one name Hydra takes that of opdlight"
    assert "nowhere" in find_option("lost", own).error
    assert "line 1" in find_option("broken", own).error
    listed = text(task_table(find_option(name, own) for name in task_files(own)), 160)
    assert "900 + 100  ?" in listed and "Cannot read" in listed
    with pytest.raises(ConfigError, match=r"`task=lost`: .*nowhere"):
        find_tasks("lost", own)
    with pytest.raises(ConfigError, match="did you mean 'few'"):
        find_tasks("fev", own)


def test_a_folder_without_tasks_of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert own_folder(None) is None
    (tmp_path / "task").mkdir()
    assert own_folder(None) == Path(".")
    monkeypatch.chdir(ROOT)
    assert own_folder(None) is None, "conf/ of the repository is opdlight's"
    assert own_folder(tmp_path) == tmp_path
    with pytest.raises(ConfigError, match="--config-dir"):
        own_folder(tmp_path / "no")


def test_one_task_in_full(mine: Path) -> None:
    said = "\n".join(detail(*find_tasks("maze", Path("conf")), Path("conf")))
    assert "conf/task/maze.yaml: python -m opdlight.train --config-dir conf task=maze" in said
    assert "system prompt:\n    You are in a corridor." in said
    assert "first observation of seed 0:\n    You are at door" in said
    assert "its expert:\n    > " in said and "reward 1, success" in said
    assert "    # the longest answer of a turn" in said and "task.tasks.maze.turn_tokens=8" in said
    lake = "\n".join(detail(*find_tasks("frozen_lake", None), None))
    assert "+task.tasks.frozen_lake.env.is_slippery=false" in lake, "an argument that the file leaves out"
    assert "missing here teacher" in lake and "episodes: a new one for every seed" in lake


def test_an_episode_that_cannot_be_shown_is_explained() -> None:
    rows = "\n".join(detail(*find_tasks("math_dataset", None), None))
    assert "no episode can be shown without env.path\n" in rows
    hub = "\n".join(detail(*find_tasks("paper_math", None), None))
    assert "making the environment may download the rows: python -m opdlight.tasks play paper_math.math\n" in hub
    assert "other tasks of it: paper_math.aime24, " in hub


def test_no_server_is_asked_for_an_episode_that_nobody_plays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opdlight.envs.openenv.server.httpx2.Client", None)
    said = "\n".join(detail(*find_tasks("openenv", None), None))
    assert "because making the environment asks its server, and again while there is none: python -m" in said


@pytest.mark.parametrize(
    ("env", "turns"),
    [
        ({"id": "FrozenLake-v1"}, 100),  # of its registration
        ({"id": "FrozenLake-v1", "max_episode_steps": 150}, 150),
        ({"id": "FrozenLake-v1", "max_episode_steps": 7, "adapter": {"max_turns": 12}}, 7),
        ({"id": "FrozenLake-v1", "adapter": {"max_turns": 12}}, 12),
        ({"id": "Blackjack-v1"}, None),
        ({"id": "Blackjack-v1", "adapter": None}, None),
        ({"id": "Blackjack-v1", "adapter": {"max_turns": 12}}, 12),
        ({"id": "own:Few-v0"}, 5),
        ({"id": "own:Few-v0", "max_episode_steps": 6}, 6),
        ({"id": "own:Few-v0", "max_episode_steps": 9}, 7),
    ],
)
def test_turns_are_those_of_the_smallest_limit(env: dict[str, Any], turns: int | None, mine: Path) -> None:
    assert env_facts("env", env).turns == turns
    if env["id"] == "FrozenLake-v1":
        words = {"actions": [*"abcd"], "observation": "builtins.repr", **env.get("adapter", {})}
        assert Task(env={**env, "adapter": words}).make_env().max_turns == turns


def test_the_command_lists_without_torch(mine: Path) -> None:
    code = "import sys, opdlight.tasks.__main__ as c; c.main(); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=mine, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[-1] == "False", done.stderr
    assert lines[2].startswith("broken "), "the user's first, below a header"
    assert any(line.startswith("alfworld ") for line in lines) and LEGEND.splitlines()[0][:60] in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["alfwrld"], 2, "error: Expected `task` to be a known name (did you mean 'alfworld'?)"),
        (["new", "Maze"], 2, "error: Expected `name` to be a lower-case Python identifier"),
        (["play", "sums", "--seed", "-2"], 2, "error: Expected `--seed` to be 0 or more"),
        (["--help"], 0, "python -m opdlight.tasks play alfworld --expert"),
        (["new", "--help"], 0, "python -m opdlight.tasks new maze"),
        (["play", "--help"], 0, "python -m opdlight.tasks play opdlight/ToyText-v0 game=Taxi-v4"),
    ],
)
def test_help_and_mistakes_of_the_command(
    arguments: list[str],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from opdlight.tasks.__main__ import main

    monkeypatch.setattr("sys.argv", ["tasks", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    printed = capsys.readouterr()
    assert left.value.code == code
    assert said in (printed.err if code else printed.out)
