"""Ctrl-C: what is said, what is kept, and how a command ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from opdlight.run_folder.checkpoints import list_checkpoints, steps_of
from tests.end_to_end.runs import SMALL, metrics, processes, start

SCRIPT = """
import os, time
from opdlight.system.interrupt import Interrupted, stop_on_ctrl_c
with stop_on_ctrl_c():
    try:
        # who reads this may interrupt: it is heard from here on, and no lock of print is held that the answer needs
        os.write(1, b"ready\\n")
        time.sleep(600)
    except Interrupted:
        print("cleaning", flush=True)  # after the line that it stops
        time.sleep({more})
        raise
"""


def interrupt(pid: int | None) -> None:
    assert pid
    os.kill(pid, signal.SIGINT)


def test_the_first_stops_in_order() -> None:
    command = [sys.executable, "-c", SCRIPT.format(more=0)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        interrupt(process.pid)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "")
    assert out.splitlines() == ["Ctrl-C: stopping. Once more ends it at once.", "cleaning"]


def test_the_second_ends_at_once() -> None:
    command = [sys.executable, "-c", SCRIPT.format(more=600)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        interrupt(process.pid)
        assert [process.stdout.readline()[:8] for _ in range(2)] == ["Ctrl-C: ", "cleaning"]
        interrupt(process.pid)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "")


def test_before_a_command_has_imported_what_handles_it(tmp_path: Path) -> None:
    (tmp_path / "omegaconf.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)")  # the first import
    paths = os.pathsep.join([str(tmp_path), os.getcwd()])
    command = [sys.executable, "-m", "opdlight.train"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def said_when_interrupted(process: processes.Process, log: Path, ready: Callable[[], bool]) -> str:
    """Interrupt a command once it is `ready`; what it has said when it has ended in order."""
    while process.exitcode is None and not ready():
        process.join(0.01)
    interrupt(process.pid)
    process.join(300)  # only against a hang
    said = log.read_text()
    assert process.exitcode == 130, said[-3000:]
    assert "Traceback" not in said
    return said


def test_a_run_writes_a_checkpoint_says_what_is_kept_and_goes_on(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "run.log"
    process = start(folder, "trainer.max_steps=400", "callbacks.checkpoints.every=1000")
    said = said_when_interrupted(process, log, lambda: (folder / "metrics.csv").exists() and len(metrics(folder)) > 2)
    assert f"run folder: {folder}" in said.splitlines()  # known while it runs
    done = sum(bool(row["loss/train"]) for row in metrics(folder))
    assert max(map(steps_of, list_checkpoints(folder))) == done > 0
    lines = [line for line in said.splitlines() if not line.startswith("alarm ")]  # of the step that was still done
    stopping, kept, resume = lines[-3:]
    assert stopping == "Ctrl-C: stopping. Once more ends it at once."
    assert kept.startswith(f"Kept in {folder}: {done} updates.")
    assert resume == f"Ctrl-C: stopped. To resume: python -m opdlight.train resume={folder}"


def test_before_the_first_update_nothing_is_kept_and_it_is_said(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "run.log"
    process = start(folder, "trainer.max_steps=3", "task.tasks.sums.episodes=2000")
    said = said_when_interrupted(process, log, lambda: log.exists() and "evaluate sums" in log.read_text())
    assert f"Kept in {folder}: no checkpoint yet; a resume starts from the beginning." in said
    assert "Ctrl-C: stopped. To resume: " in said.splitlines()[-1]
    assert not (tmp_path / "latest").is_symlink()  # it did not get as far as training


def command(name: str, arguments: list[str], log: str) -> None:
    """Another command, in a process that starts fast."""
    import importlib

    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [name, *arguments]
    importlib.import_module(f"{name}.__main__").main()


@pytest.mark.parametrize(
    ("name", "arguments", "sign"),
    [
        ("opdlight.evaluate", ["task=sums", "task.tasks.sums.episodes=4000", SMALL[-2]], "evaluate sums"),
        ("opdlight.sft", ["task=sums", "trainer.max_steps=4000", "demonstrations.episodes=40"], "update 1/"),
        ("opdlight.lab.toy", ["seeds=[1]", "iterations=200000", "sensitivity=null"], "setting 1 of 1"),
        ("opdlight.doctor", ["task=sums"], "loading the teachers"),
    ],
)
def test_other_commands_end_with_one_line(name: str, arguments: list[str], sign: str, tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "run"
    where = [] if "doctor" in name else [f"run_dir={folder}"]
    process = processes.Process(target=command, args=(name, [*arguments, *where], str(log)))
    process.start()
    said = said_when_interrupted(process, log, lambda: log.exists() and sign in log.read_text())
    assert said.splitlines()[-2:] == [
        "Ctrl-C: stopping. Once more ends it at once.", "Ctrl-C: stopped" + (f"; unfinished: {folder}" if where else "")
    ]  # fmt: skip


def test_two_processes_that_a_terminal_interrupts_stop_at_the_same_step(tmp_path: Path) -> None:
    overrides = [*SMALL, "trainer=ddp", "trainer.accelerator=cpu", "trainer.max_steps=500", f"run_dir={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    line, pipe = [sys.executable, "-m", "opdlight.train", *overrides], subprocess.PIPE
    with subprocess.Popen(
        line, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True
    ) as process:
        while process.poll() is None and not ((tmp_path / "metrics.csv").exists() and len(metrics(tmp_path)) > 2):
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        out, error = process.communicate(timeout=120)
    assert process.returncode == 130, out[-2000:] + error[-3000:]
    assert "Traceback" not in out + error
    done = sum(bool(row["loss/train"]) for row in metrics(tmp_path))
    assert steps_of(list_checkpoints(tmp_path)[-1]) == done
    assert out.count("Ctrl-C: stopping") == out.count("Ctrl-C: stopped. To resume: ") == 1
