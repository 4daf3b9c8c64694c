"""A run that was killed, stopped or damaged goes on as if nothing had happened."""

import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from opdlight.run_folder.checkpoints import list_checkpoints, steps_of
from opdlight.train.__main__ import main
from tests.end_to_end.runs import (
    HANGS,
    SMALL,
    assert_same_run,
    cpu_seconds,
    finish,
    let_run,
    metrics,
    processes,
    start,
    train,
)

STEPS = ["trainer.max_steps=6", "trainer.val_check_interval=3"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nothing happened to, and the seconds of CPU that one takes when everything is imported."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    finish(folder, *STEPS, "callbacks.checkpoints.keep=9", "callbacks.checkpoints.every=1")
    again = start(folder.parent / "again", *STEPS)
    seconds = let_run(again, HANGS)
    assert_same_run(folder, folder.parent / "again")
    return folder, seconds


def stopped_after(step: int, whole: Path, folder: Path) -> Path:
    """A copy of the run as if it had been killed some time after a step."""
    shutil.copytree(whole, folder)
    for checkpoint in list_checkpoints(folder):
        if steps_of(checkpoint) > step or checkpoint.name.endswith("-end"):
            shutil.rmtree(checkpoint)
    for name in ("student", "report"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "summary.json").unlink()
    return folder


def test_ten_kills_at_random_moments_change_nothing(whole: tuple[Path, float], tmp_path: Path) -> None:
    draw, kills, runs = random.Random(0), 0, 0
    while kills < 10:
        folder, runs = tmp_path / str(runs), runs + 1
        while True:
            process = start(folder, *STEPS)
            let_run(process, draw.uniform(0.0, 0.8 * whole[1]) if kills < 10 else HANGS)
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            kills += 1
        assert process.exitcode == 0, Path(f"{folder}.log").read_text()[-3000:]
        assert_same_run(whole[0], folder)
        assert len(list_checkpoints(folder)) == 2  # `keep`


def test_sigterm_writes_a_checkpoint_and_exits_with_0(whole: tuple[Path, float], tmp_path: Path) -> None:
    folder, draw, stops = tmp_path / "run", random.Random(1), 0
    for _ in range(3):
        had = len(metrics(folder)) if folder.exists() else 0
        process = start(folder, *STEPS, "callbacks.checkpoints.every=100")
        while process.exitcode is None and (not (folder / "metrics.csv").exists() or len(metrics(folder)) <= had):
            process.join(0.01)
        let_run(process, cpu_seconds(process) + draw.uniform(0.0, 0.5))
        if process.exitcode is None:
            assert process.pid
            os.kill(process.pid, signal.SIGTERM)
            stops += 1
        process.join(HANGS)
        assert process.exitcode == 0, Path(f"{folder}.log").read_text()[-3000:]
        newest = max(map(steps_of, list_checkpoints(folder)), default=0)  # it may come before the first step
        assert newest == sum(bool(row["loss/train"]) for row in metrics(folder)), "a finished step was lost"
    finish(folder)
    assert_same_run(whole[0], folder)
    said = Path(f"{folder}.log").read_text()
    assert stops > 1
    assert f"SIGTERM: stopped. To resume: python -m opdlight.train resume={folder}" in said
    assert "after step" in said


@pytest.mark.parametrize("step", [0, 3, 6])
def test_it_goes_on_from_any_checkpoint(step: int, whole: tuple[Path, float], tmp_path: Path) -> None:
    folder = stopped_after(step, whole[0], tmp_path / "run")
    (folder / "checkpoints" / ".step-00000009").mkdir()  # half a checkpoint, from a kill while it was written
    with (folder / "trajectories.jsonl").open("a") as file:
        file.write('{"half a li')
    finish(folder)
    assert_same_run(whole[0], folder)
    assert sorted(p.name for p in folder.iterdir() if "events" not in p.name) == sorted(
        p.name for p in whole[0].iterdir() if "events" not in p.name
    )
    assert f"resuming {folder} after step {step}" in Path(f"{folder}.log").read_text()


def test_a_batch_that_was_rolled_out_ahead_is_not_lost(tmp_path: Path) -> None:
    folders = [tmp_path / "whole", tmp_path / "run"]
    finish(folders[0], *STEPS, "callbacks.checkpoints.keep=9", "callbacks.checkpoints.every=1", "staleness=1")
    assert [row["rollout/staleness"] for row in metrics(folders[0]) if row["loss/train"]] == ["0.0"] + ["1.0"] * 5
    finish(stopped_after(3, *folders))
    assert_same_run(*folders)


def test_a_damaged_checkpoint_has_a_predecessor(whole: tuple[Path, float], tmp_path: Path) -> None:
    folder = stopped_after(4, whole[0], tmp_path / "run")
    weights = folder / "checkpoints" / "step-00000004" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    finish(folder)
    assert_same_run(whole[0], folder)
    said = Path(f"{folder}.log").read_text()
    assert "step-00000004 is damaged: expected weights.safetensors to be" in said
    assert f"resuming {folder} after step 3" in said
    assert (folder / "checkpoints" / "damaged-step-00000004").is_dir()


def test_what_has_changed_is_said_and_holds(whole: tuple[Path, float], tmp_path: Path) -> None:
    folder = stopped_after(2, whole[0], tmp_path / "run")
    for extra in (["trainer.max_steps=4"], []):  # the second goes on with what the first was given
        arguments = [f"resume={folder}", *extra]
        process = processes.Process(target=train, args=(arguments, f"{folder}.log"))
        process.start()
        process.join(HANGS)
        assert process.exitcode == 0, Path(f"{folder}.log").read_text()[-3000:]
    said = Path(f"{folder}.log").read_text()
    assert said.count("changed since: trainer.max_steps: 6 → 4") == said.count("trainer.max_steps: ") == 1
    assert [row["step"] for row in metrics(folder) if row["loss/train"]] == ["0", "1", "2", "3"]


def stop_of(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr("sys.argv", ["train", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def go_on(folder: Path, *overrides: str) -> str:
    """Resume with something changed; returns what the terminal said."""
    log = Path(f"{folder}.log")
    before = len(log.read_text()) if log.exists() else 0
    process = processes.Process(target=train, args=([f"resume={folder}", *overrides], str(log)))
    process.start()
    process.join(240)
    assert process.exitcode == 0, log.read_text()[-3000:]
    return log.read_text()[before:]


LONGER = ["task=sums", "task.tasks.sums.episodes=2", "evaluate_teachers=false", "rollout.groups=4"]
LONGER += ["engine._target_=tests.fakes.AnsweringEngine", "schedule.warmup=0"]


@pytest.mark.parametrize(("mini_batches", "left"), [(1, "-end"), (1, "in its last evaluation"), (2, "-end")])
def test_a_run_that_has_ended_goes_on_to_more_steps(mini_batches: int, left: str, tmp_path: Path) -> None:
    mini = [f"rollout.mini_batches={mini_batches}", "schedule.kind=constant"]
    for name, steps in (("whole", 4 * mini_batches), ("run", 2 * mini_batches)):
        process = processes.Process(
            target=train,
            args=(
                [*LONGER, *mini, f"trainer.max_steps={steps}", f"hydra.run.dir={tmp_path / name}"],
                f"{tmp_path}.log",
            ),
        )
        process.start()
        process.join(240)
        assert process.exitcode == 0, Path(f"{tmp_path}.log").read_text()[-3000:]
    folder = tmp_path / "run"
    if left != "-end":
        shutil.rmtree(folder / "checkpoints" / "step-00000002-end")
    assert f"resuming {folder} after step 2" in go_on(folder, f"trainer.max_steps={4 * mini_batches}")
    rows, whole = ([r for r in metrics(tmp_path / name) if r["loss/train"]] for name in ("run", "whole"))
    assert [r["step"] for r in rows] == ["0", "1", "2", "3"]
    for key in ("loss/train", "optimizer/grad_norm", "optimizer/learning_rate", "coverage/student_mass/sums"):
        assert [r[key] for r in rows] == [r[key] for r in whole], key
    weights, theirs = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("run", "whole"))
    assert all((weights[name] == theirs[name]).all() for name in weights)
    outcome, theirs = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "whole"))
    assert outcome["tasks"] == theirs["tasks"]  # `before` is that of the first part
    assert outcome["tokens"] == theirs["tokens"]
    assert [p.name for p in list_checkpoints(folder)] == ["step-00000004", "step-00000004-end"]


def test_schedule_and_rate_are_those_of_the_command_line_that_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = processes.Process(
        target=train, args=([*LONGER, "trainer.max_steps=2", f"hydra.run.dir={folder}"], f"{folder}.log")
    )
    process.start()
    process.join(240)
    # the cosine had come down to 0 at 2; now it comes down at 4, so it is half way
    said = go_on(folder, "trainer.max_steps=4")
    assert "learning rate: 0 when the run stopped, 0.00025 from here" in said
    said = go_on(folder, "trainer.max_steps=5", "schedule.kind=constant", "optimizer.lr=0.1")
    assert "learning rate: 0 when the run stopped, 0.1 from here" in said
    rates = [float(r["optimizer/learning_rate"]) for r in metrics(folder) if r["loss/train"]]
    assert rates == pytest.approx([5e-4, 2.5e-4, 2.5e-4, 5e-4 * (1 - 0.5**0.5) / 2, 0.1], rel=1e-6)


def test_a_run_that_is_complete_has_nothing_to_do(
    whole: tuple[Path, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    summary, overrides = (folder / "summary.json").read_text(), (folder / "overrides.json").read_text()
    assert "Expected `trainer.max_steps` to be at least 6, the updates that" in stop_of(
        [f"resume={folder}", "trainer.max_steps=5"], monkeypatch, capsys
    )
    assert (folder / "overrides.json").read_text() == overrides  # nothing of a command line that was refused
    said = go_on(folder)
    assert f"nothing to do: {folder} has done its 6 updates (trainer.max_steps)" in said
    assert "doctor" not in said and (folder / "summary.json").read_text() == summary
    (folder / "summary.json").unlink()  # killed between the last update and the summary
    said = go_on(folder)
    assert f"nothing to train: {folder} has done its 6 updates; its end is done again" in said
    assert "held-out success" in said
    assert_same_run(whole[0], folder)


def test_what_cannot_go_on_is_one_message(
    whole: tuple[Path, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str) -> str:
        return stop_of(list(arguments), monkeypatch, capsys)

    assert "Expected `resume` to be the folder of a run of opdlight.train, which holds overrides.json" in said(
        f"resume={tmp_path}"
    )
    assert "Expected `resume` to be of one run, but got '--multirun'" in said(f"resume={whole[0]}", "--multirun")
    described = {name: (whole[0] / name).read_text() for name in ("overrides.json", "config.yaml", "versions.json")}
    assert "Expected `run_dir` to be a folder without checkpoints, or `resume` it" in said(
        *SMALL, "seed=7", f"hydra.run.dir={whole[0]}"
    )
    assert {name: (whole[0] / name).read_text() for name in described} == described  # a resume needs them
    folder = stopped_after(1, whole[0], tmp_path / "run")
    for state in folder.glob("checkpoints/*/state.pt"):
        state.unlink()
    for _ in range(2):
        error = said(f"resume={folder}")
        assert f"All checkpoints of {folder} are damaged: it cannot be resumed, start a new run." in error
        assert "step-00000001 lacks state.pt" in error
    folder = stopped_after(2, whole[0], tmp_path / "other")
    error = said(f"resume={folder}", "+model.student.lora={r: 4}")
    assert f"The checkpoint {folder}/checkpoints/step-00000002 is of another model: expected" in error


def test_a_full_disk_or_a_closed_folder_is_an_error_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10 * 2**20))
    error = stop_of([*SMALL, f"hydra.run.dir={tmp_path / 'full'}"], monkeypatch, capsys)
    assert "Expected `run_dir` to be on a disk with more room" in error
    assert "'0.01 GiB free for checkpoints and student, which need 0.04'" in error
    assert not list((tmp_path / "full").glob("checkpoints/*"))
    (tmp_path / "file").write_text("in the way")
    error = stop_of([*SMALL, f"run_dir={tmp_path / 'file'}", f"hydra.run.dir={tmp_path / 'h'}"], monkeypatch, capsys)
    assert "Expected `run_dir` to be a folder that can be written" in error
