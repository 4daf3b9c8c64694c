"""An entry point as it is started: exit codes, messages, what Hydra users expect."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from entry_process import start


def test_the_entry_point_runs_where_it_was_started(conf: Path) -> None:
    done = start(conf, "loss=large")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"ran k=300 in cwd writes to {conf.parent / 'cwd' / 'out' / 'run'}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss=larg"], "The group `loss` has no option 'larg'."),
        (["loss.k=ten"], "Expected `loss.k` to be int, but got 'ten' (str)."),
        (["loss.k=-1"], "Expected `loss.k` to be at least 0, but got -1."),  # raised by the class when it is built
        (["run_dir="], "Expected `run_dir` to be the path of a folder, but got ''."),
        (["loss.fail=config"], "the run is told to stop"),
        (["-m", "loss=small,larg"], "The group `loss` has no option 'larg'."),
        (["-m", "loss.k=1,2,ten", "seed=1,2"], "Expected `loss.k` to be int, but got 'ten' (str)."),
        (["-m", "loss.k=[1,2"], "Cannot read the override `loss.k=[1,2`"),
        (["--cfg", "job", "loss.kk=1"], "Unknown key `loss.kk`."),
    ],
)
def test_a_mistake_ends_the_entry_point_with_code_2_and_no_traceback(
    arguments: list[str], message: str, conf: Path
) -> None:
    done = start(conf, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_a_bug_keeps_its_traceback_and_hydra_full_error_shows_every_one(conf: Path) -> None:
    bug = start(conf, "loss.fail=bug")
    assert (bug.returncode, "RuntimeError: a bug" in bug.stderr) == (1, True)
    full = start(conf, "loss.k=ten", HYDRA_FULL_ERROR="1")
    assert "Traceback" in full.stderr
    assert "Expected `loss.k` to be int" in full.stderr


def test_what_hydra_users_expect_works(conf: Path) -> None:
    sweep = start(conf, "-m", "loss=small,large")
    assert [line[:9] for line in sweep.stdout.splitlines() if line.startswith("ran")] == ["ran k=3 i", "ran k=300"]
    shown = start(conf, "--cfg", "job", "loss.k=ten")  # to look at a config needs no right types
    assert "k: ten" in shown.stdout
    assert "Hydra" in start(conf, "--hydra-help").stdout
    added = start(conf, "--config-dir", str(conf.parent), "--info", "defaults")
    assert "loss/small" in added.stdout


def test_a_help_whose_reader_leaves_early_ends_without_a_word(conf: Path) -> None:
    (conf / "main.yaml").write_text("# " + "word " * 30_000 + (conf / "main.yaml").read_text())  # no pipe holds it
    left = f"{shlex.join([sys.executable, '-m', 'config_targets', str(conf), '--help'])} | head -n 1"
    folder = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{folder.parents[1]}"}
    done = subprocess.run(left, shell=True, env=env, cwd=conf, capture_output=True, text=True, check=False)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
