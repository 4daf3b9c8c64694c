"""The cold start as a command: what it leaves and says."""

import shlex
from pathlib import Path

import pytest

from opdlight.config import TrainConfig, compose
from opdlight.sft.__main__ import main

SMALL = ["demonstrations.episodes=4", "demonstrations.workers=1", "batch_size=2", "trainer.max_steps=2"]


def test_its_last_line_is_a_command_that_distils_the_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my run"
    monkeypatch.setattr("sys.argv", ["sft", "task=sums", "model=lab", *SMALL, f"hydra.run.dir='{folder}'"])
    main()
    *_, updates, student, command = capsys.readouterr().out.splitlines()
    assert updates.startswith("2 updates on 4 demonstrations; loss of the last: ")
    assert student == f"student: {folder / 'student'}"
    python, dash, module, *overrides = shlex.split(command.removeprefix("distil it: "))
    assert (python, dash, module) == ("python", "-m", "opdlight.train")
    cfg = compose("train", TrainConfig, overrides)
    assert (cfg.model.student.model, list(cfg.task.tasks)) == (str(folder / "student"), ["sums"])
    assert (folder / "student" / "model.safetensors").is_file()
