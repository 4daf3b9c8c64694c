"""Loggers: the files of real offline runs, missing packages, and that secrets are not logged."""

import importlib.util
import json
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from opdlight.config import CONF, TrainConfig, compose
from opdlight.errors import ConfigError, MissingDependencyError
from opdlight.run_folder.loggers import HIDDEN, IDS, close_loggers, open_loggers, without_secrets
from opdlight.system.closing import Closing
from opdlight.train.run import train

FAKE = ["engine._target_=tests.fakes.AnsweringEngine", "task=sums", "task.tasks.sums.episodes=1"]
SMALL = ["rollout.groups=2", "trainer.max_steps=2", "evaluate_teachers=false"]
SECRET = "s3cr3t-of-this-test"
LEAK = "mask.tokens=['${oc.env:MY_SERVICE_TOKEN}']"  # a place that takes any text

needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb (extra `wandb`) is missing")
needs_mlflow = pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None or importlib.util.find_spec("sqlalchemy") is None,
    reason="mlflow-skinny or sqlalchemy (extra `mlflow`) is missing",
)


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the person who runs the tests, and nothing outside the test's folder."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_SERVICE_TOKEN", SECRET)
    monkeypatch.setattr(sys, "argv", ["train", f"key={SECRET}"])


def config(folder: Path, *overrides: str) -> Any:
    return compose("train", TrainConfig, [*FAKE, *SMALL, f"run_dir='{folder}'", *overrides])


def holds(folder: Path, text: str) -> list[str]:
    return [str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file() and text.encode() in f.read_bytes()]


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "logger").glob("*.yaml")))
def test_every_logger_config_passes_its_checks(name: str) -> None:
    assert list(compose("train", TrainConfig, ["task=sums", f"logger={name}"]).logger)


def test_the_default_is_csv_and_tensorboard(tmp_path: Path) -> None:
    loggers = open_loggers(config(tmp_path), tmp_path, Closing())
    close_loggers(loggers, Closing())
    assert [type(x).__name__ for x in loggers] == ["MetricsFile", "TensorBoardLogger"]
    assert [Path(x.log_dir) for x in loggers] == [tmp_path] * 2


def test_tensorboard_forgets_what_a_run_that_goes_on_does_again(tmp_path: Path) -> None:
    for start, steps in ((None, range(5)), (3, range(3, 7))):  # killed after step 4; its checkpoint is that of step 3
        loggers = open_loggers(config(tmp_path), tmp_path, Closing(), step=start)
        for step in steps:
            loggers[1].log_metrics({"a": step + (start or 0) / 10}, step=step)
        close_loggers(loggers, Closing())
        loggers[1].finalize("success")
        time.sleep(1.1)  # the files of a folder are read in the order of their seconds
    events = EventAccumulator(str(tmp_path), purge_orphaned_data=True).Reload().Scalars("a")
    assert [(e.step, round(e.value, 1)) for e in events] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 3.3),
        (4, 4.3),
        (5, 5.3),
        (6, 6.3),
    ]


@needs_wandb
@pytest.mark.parametrize("offline", ["config", "environment"])
def test_wandb_offline_needs_no_account(offline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    cfg = config(folder, "logger=wandb", LEAK, *(["logger.wandb.offline=true"] if offline == "config" else []))
    if offline == "environment":
        monkeypatch.setenv("WANDB_MODE", "offline")
    else:
        monkeypatch.setenv("WANDB_MODE", "disabled")  # Lightning overwrites it; this only lets monkeypatch put it back
    train(cfg)
    assert sys.modules["wandb"].run is None  # the next run of this process gets its own
    (record,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"rollout/success/sums" in record.read_bytes()
    assert b"trajectory_tokens" in record.read_bytes()
    assert (folder / "metrics.csv").stat().st_size > 0
    assert holds(folder / "wandb", SECRET) == []
    assert not list(folder.glob("events.out.tfevents.*"))


@needs_mlflow
@pytest.mark.filterwarnings("ignore")  # sqlalchemy and alembic speak of their own future
def test_mlflow_writes_its_database_into_the_run_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(config(folder, "logger=mlflow", LEAK))
    with sqlite3.connect(folder / "mlflow.db") as database:
        logged = dict(database.execute("select key, value from metrics where step = 1").fetchall())
        parameters = dict(database.execute("select key, value from params").fetchall())
    assert 0 <= logged["rollout/success/sums"] <= 1
    assert parameters["task/tasks/sums/trajectory_tokens"] == "256"
    assert parameters["mask/tokens"] == f"['{HIDDEN}']"
    assert holds(folder, SECRET) == ["config.yaml"]  # the run folder itself stays here
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "run"]
    assert (folder / "metrics.csv").stat().st_size > 0


@needs_mlflow
@pytest.mark.filterwarnings("ignore")  # sqlalchemy and alembic speak of their own future
def test_a_run_that_goes_on_is_the_same_run_of_mlflow(tmp_path: Path) -> None:
    cfg = config(tmp_path / "run", "logger=mlflow")
    loggers = open_loggers(cfg, tmp_path / "run", Closing())
    loggers[1].log_metrics({"a": 1.0}, step=1)
    loggers[1].finalize("success")
    known = json.loads((tmp_path / "run" / IDS).read_text())
    moved = tmp_path / "moved to é"
    shutil.move(tmp_path / "run", moved)
    for steps in (4, 5):  # `run_dir` and `trainer.max_steps` are others than MLflow has
        cfg = config(moved, "logger=mlflow", f"trainer.max_steps={steps}", f"resume='{moved}'")
        again = open_loggers(cfg, moved, closing := Closing())
        assert (again[1].version, again[1].name) == (loggers[1].version, loggers[1].name)
        again[1].log_metrics({"a": float(steps)}, step=steps)
        again[1].finalize("success")
        assert closing.failed == {}
    with sqlite3.connect(moved / "mlflow.db") as database:
        assert database.execute("select run_uuid, status from runs").fetchall() == [(known["mlflow"], "FINISHED")]
        assert database.execute("select step, value from metrics order by step").fetchall() == [(1, 1), (4, 4), (5, 5)]
        parameters = dict(database.execute("select key, value from params").fetchall())
        tags = dict(database.execute("select key, value from tags").fetchall())
    assert (parameters["trainer/max_steps"], tags["now: trainer/max_steps"]) == ("2", "5")
    assert (parameters["run_dir"], tags["now: run_dir"]) == (str(tmp_path / "run"), str(moved))
    assert json.loads((moved / IDS).read_text()) == known
    (moved / "mlflow.db").unlink()
    with pytest.raises(ConfigError, match=f"Cannot start `logger.mlflow`: .*{IDS} names; without this file"):
        open_loggers(cfg, moved, Closing())


@needs_wandb
def test_a_run_that_goes_on_is_the_same_run_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")  # Lightning overwrites it; this only lets monkeypatch put it back
    cfg = config(tmp_path, "logger=wandb", "logger.wandb.offline=true")
    ids = []
    for overrides in ([], [f"resume={tmp_path}"], [f"resume={tmp_path}", "+logger.wandb.id=mine"]):
        cfg = config(tmp_path, "logger=wandb", "logger.wandb.offline=true", *overrides)
        loggers = open_loggers(cfg, tmp_path, closing := Closing())
        loggers[1].log_metrics({"a": 1.0}, step=1)
        close_loggers(loggers, closing)
        assert closing.failed == {}
        ids.append(loggers[1].version)
        assert json.loads((tmp_path / IDS).read_text()) == {"wandb": ids[-1]}
    assert ids[0] == ids[1] and ids[2] == "mine"
    parts = [p.name for p in (tmp_path / "wandb").glob("offline-run-*")]  # of one second: date-id and date-id-1
    assert sorted(i for name in parts for i in set(ids) if f"-{i}" in name) == sorted(map(str, ids))


@needs_mlflow
@pytest.mark.filterwarnings("ignore")
def test_another_run_in_the_same_folder_s_place_begins_its_own(tmp_path: Path) -> None:
    versions = [open_loggers(config(tmp_path, "logger=mlflow"), tmp_path, Closing())[1].version for _ in range(2)]
    assert versions[0] != versions[1]
    assert config(tmp_path / "b", "logger=mlflow").logger.mlflow.tracking_uri == f"sqlite:///{tmp_path}/b/mlflow.db"


def test_a_logger_that_fails_is_said_once_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = config(tmp_path, "+logger.other._target_=tests.fakes.FailingLogger")
    loggers = open_loggers(cfg, tmp_path, closing := Closing())
    for step in range(3):
        loggers[-1].log_metrics({"a": 1.0}, step)
    loggers[-1].finalize("success")
    assert list(closing.failed.values()) == ["ConnectionError: the tracking server is away"]
    assert capsys.readouterr().out.count("failed: log by logger.other; metrics.csv has all figures") == 1
    cfg = config(tmp_path, "+logger.other={_target_: lightning.pytorch.loggers.TensorBoardLogger}",
                 "+logger.other.save_dir=/proc/nowhere")  # fmt: skip
    with pytest.raises(ConfigError, match=r"Cannot start `logger\.other`: "):
        open_loggers(cfg, tmp_path, Closing())


def test_mlflow_goes_where_its_environment_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere:5000")
    assert config(tmp_path, "logger=mlflow").logger.mlflow.tracking_uri == "http://somewhere:5000"


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow"), ("mlflow", "sqlalchemy")])
def test_a_missing_package_names_its_extra(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda p: None if p == package else find(p))
    with pytest.raises(MissingDependencyError, match=rf"`logger={name}` needs the extra `{name}`"):
        open_loggers(config(tmp_path, f"logger={name}"), tmp_path, Closing())


SHOWN: list[Any] = [
    {"turn_tokens": 64, "trajectory_tokens": 256, "tokens": ["<think>", 7], "k": 3, "keys": ["a"]},
    {"model": "lab/student", "url": "https://host:8000/v1", "revision": "0" * 40, "key": None, "token": 5},
    {"author": "me", "monkey": "x", "keyboard": "y"},
    {"instruction": "Work out the key of the door.", "_target_": "opdlight.losses.SpecialTokenMask", "bypass": "no"},
    {"path": "a/risk-assessment-of-everything-there-is", "dsn": "sqlite:///runs/mlflow.db"},
]  # fmt: skip
HIDES: list[Any] = [
    {"api_key": "a"}, {"apikey": "a"}, {"API-KEY": "a"}, {"openaiApiKey": "a"}, {"token": "a"}, {"hf_token": "a"},
    {"password": "a"}, {"passwd": "a"}, {"secret": "a"}, {"client_secret": "a"}, {"credentials": "a"},
    {"authorization": "a"}, {"headers": {"Authorization": "Basic a"}}, {"tokens": ["hf_" + "a" * 30]},
    {"x": "sk-" + "a" * 20}, {"x": "ghp_" + "a" * 30}, {"x": "Bearer abcdefgh1"}, {"x": "http://me:pw@host/db"},
    {"x": f"prefix {SECRET} suffix"}, [{"deep": [{"key": "a"}]}],
]  # fmt: skip


@pytest.mark.parametrize("value", SHOWN)
def test_what_is_no_secret_is_logged_as_it_is(value: Any) -> None:
    assert without_secrets(value) == value


@pytest.mark.parametrize("value", HIDES)
def test_what_looks_like_a_secret_is_hidden(value: Any) -> None:
    def leaves(node: Any) -> Iterator[Any]:
        for child in node.values() if isinstance(node, dict) else node:
            yield from leaves(child) if isinstance(child, dict | list) else [child]

    assert list(leaves(without_secrets(value))) == [HIDDEN]
