"""`python -m opdlight.tasks new`: what it writes works at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from opdlight.config import CONF, TrainConfig, compose, instantiate
from opdlight.config.environments import check_env
from opdlight.envs.base import FIRST_HELD_OUT_SEED
from opdlight.envs.wrapped import make_text_env
from opdlight.errors import ConfigError
from opdlight.tasks import new

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def written(beside: Path) -> Path:
    """A folder with a task of each kind."""
    for name, turns in (("two_rooms", "many"), ("quiz", "1")):
        files = new.write(name, turns, Path("."))
        assert files == [Path(f"{name}.py"), Path(f"conf/task/{name}.yaml"), Path(f"test_{name}.py")]
    return beside


def test_the_tests_that_it_writes_pass(written: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"],
        cwd=written, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


@pytest.mark.parametrize(("name", "argument"), [("two_rooms", "doors"), ("quiz", "largest")])
def test_its_configuration_is_right_and_its_arguments_are_checked(name: str, argument: str, written: Path) -> None:
    changes = [f"task={name}", f"task.tasks.{name}.env.{argument}=20", "run_dir=x"]
    task = compose("train", TrainConfig, changes, extra=Path("conf")).task
    mixture = instantiate(task)
    mixture.check_envs()
    assert mixture.tasks[name].make_env().unwrapped.__dict__[argument] == 20
    with pytest.raises(ConfigError, match=rf"has no option '{name}'\. For conf/task/{name}.yaml: --config-dir conf\.$"):
        compose("train", TrainConfig, [f"task={name}", "run_dir=x"])
    with pytest.raises(ConfigError, match=f"`env.{argument}` to be int ≥ "):
        check_env("env", {**mixture.tasks[name].env, argument: 1})


def test_training_and_held_out_episodes_differ(written: Path) -> None:
    for name in ("two_rooms", "quiz"):
        env = make_text_env(env_id=f"{name}:{'TwoRooms' if name == 'two_rooms' else 'Quiz'}-v0")
        sides = [{env.reset(seed=first + seed)[0] for seed in range(100)} for first in (0, FIRST_HELD_OUT_SEED)]
        assert not sides[0] & sides[1] and min(map(len, sides)) > 10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-Task", "lower-case Python identifier"), ("2d", "identifier"), ("../up", "identifier"), ("é", "identifier"),
        ("class", "identifier"), ("null", "identifier"), ("on", "identifier"), ("play", "identifier"),
        ("alfworld", "opdlight's task 'alfworld'"), ("json", "module that Python finds .*json"), ("sys", "built-in"),
        ("a" * 250, "at most 100 characters"),
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_is_one_error(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^Expected `name` to be .*{message}"):
        new.write(name, "many", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    for there in ("own_maze.py", "conf/task/own_maze.yaml", "test_own_maze.py"):
        folder = tmp_path / there.replace("/", "-")
        (folder / there).parent.mkdir(parents=True)
        (folder / there).write_text("mine")
        with pytest.raises(ConfigError, match=f"{there} is there"):
            new.write("own_maze", "many", folder)
        assert [f.read_text() for f in folder.rglob("*.*") if f.is_file()] == ["mine"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="`--folder` to be a folder that can be written"):
        new.write("own_maze", "many", tmp_path / "file")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "conf").write_text("a file, and no folder")
    with pytest.raises(ConfigError, match="`--folder` to be a folder that can be written"):
        new.write("own_maze", "many", tmp_path / "half")
    assert [f.name for f in (tmp_path / "half").iterdir()] == ["conf"], "what cannot be finished is not begun"


def test_the_class_has_a_name_that_the_file_does_not_use_otherwise() -> None:
    assert "class Corridor(" in new.contents("corridor", "many")["corridor.py"]
    files = new.contents("bounds", "many")
    assert "class BoundsTask(TextEnv)" in files["bounds.py"] and "Bounds(at_least" in files["bounds.py"]
    assert "id: bounds:BoundsTask-v0" in files["conf/task/bounds.yaml"]
    assert "from bounds import BoundsTask" in files["test_bounds.py"]


def test_it_prints_what_to_do(beside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new.main(["own_maze"])
    said = capsys.readouterr().out
    assert said.startswith("wrote own_maze.py\nwrote conf/task/own_maze.yaml\nwrote test_own_maze.py\n")
    commands = [line for line in said.splitlines() if line.startswith("  ")]
    assert commands[:2] == ["  python -m pytest test_own_maze.py", "  python -m opdlight.tasks play own_maze --expert"]
    assert commands[2].startswith("  python -m opdlight.train --config-dir conf task=own_maze trainer.max_steps=2 ")
    assert new.next_commands("quiz", Path("a b"))[0] == "cd 'a b'"
    assert "--config-dir" not in new.next_commands("quiz", CONF.resolve().parent)[-1], "the folder is found anyway"
