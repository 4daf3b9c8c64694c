"""Any characters in folder names: of a user's configuration, and of a run, from training to the report."""

from pathlib import Path

import pytest

from opdlight.config import CONF, TrainConfig, compose
from opdlight.config.resume import quoted
from opdlight.errors import ConfigError
from opdlight.report.__main__ import main as report
from opdlight.train.__main__ import main
from tests.end_to_end.runs import metrics, processes, train

ODD = "it's é, a=b #1"


def with_a_task(folder: Path) -> Path:
    """A folder of a user's own configuration: the sums under another name."""
    (folder / "task").mkdir(parents=True)
    (folder / "task" / "mine.yaml").write_text((CONF / "task" / "sums.yaml").read_text())
    return folder


@pytest.mark.parametrize("name", ["conf", "with a blank", "é", ODD])
def test_a_user_s_task_is_found_in_any_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_a_task(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for extra in (Path(name), tmp_path / name):
        assert list(compose("train", TrainConfig, ["task=mine", "run_dir=x"], extra=extra).task.tasks) == ["sums"]
    with pytest.raises(ConfigError, match="mine"):
        compose("train", TrainConfig, ["task=mine", "run_dir=x"])


def test_a_config_dir_that_is_not_there_is_one_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train", "--config-dir", "no where", "task=sums"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err == "error: Expected `--config-dir` to be a folder that exists, but got 'no where'.\n"


def test_a_run_trains_goes_on_and_is_reported_under_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, log = tmp_path / ODD / "run", tmp_path / "log"
    first = ["--config-dir", str(with_a_task(tmp_path / "é conf")), "task=mine", "task.tasks.sums.episodes=1"]
    first += ["rollout.groups=2", "evaluate_teachers=false", "engine._target_=tests.fakes.AnsweringEngine"]
    first += ["trainer.max_steps=1", quoted("hydra.run.dir", str(folder))]
    for arguments in (first, [quoted("resume", str(folder)), "trainer.max_steps=2"]):  # it remembers its --config-dir
        process = processes.Process(target=train, args=(arguments, str(log)))
        process.start()
        process.join(240)
        assert process.exitcode == 0, log.read_text()[-3000:]
    assert [row["step"] for row in metrics(folder) if row["loss/train"]] == ["0", "1"]
    assert (folder / "student" / "model.safetensors").is_file()
    assert list(folder.glob("events.out.tfevents.*"))
    monkeypatch.setattr("sys.argv", ["report", quoted("run", str(folder))])
    report()
    assert (folder / "report" / "index.html").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([ODD, "log", "é conf"])
