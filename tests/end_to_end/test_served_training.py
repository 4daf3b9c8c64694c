"""Whole runs beside (fake) servers: the losses of the local teacher, faults in the records, the key nowhere."""

import csv
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from opdlight.config import TrainConfig, compose
from opdlight.errors import ConfigError
from opdlight.metrics.glossary import describe
from opdlight.models.loading import load_model, load_tokenizer
from opdlight.run_folder.checkpoints import list_checkpoints, steps_of
from opdlight.system import vllm_http as module
from opdlight.train.run import train
from tests import fake_server
from tests.fake_server import FakeServer

SMALL = [
    "task=sums", "task.tasks.sums.episodes=2", "rollout.groups=4", "trainer.max_steps=2", "evaluate_teachers=false",
    "micro_batch_tokens=400",
]  # fmt: skip
ANSWERING = "engine._target_=tests.fakes.AnsweringEngine"
KEY = "sesame-4711"


@pytest.fixture(autouse=True)
def _key_and_no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("VLLM_API_KEY", KEY)


def fake(name: str, **how: bool) -> FakeServer:
    return FakeServer(
        load_model(f"lab/{name}", "float32").eval(), load_tokenizer("lab/student"), name, context=1025, key=KEY, **how
    )


@pytest.fixture
def teacher() -> Iterator[FakeServer]:
    with fake("teacher-sums") as fake_teacher:
        yield fake_teacher


def rows(folder: Path) -> list[dict[str, str]]:
    """The metrics of both steps."""
    with (folder / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["loss/train"]]


@pytest.mark.parametrize("loss", ["topk_rkl", "student_topk_rkl"])
def test_a_served_teacher_teaches_as_the_local_one(loss: str, teacher: FakeServer, tmp_path: Path) -> None:
    settings = [*SMALL, ANSWERING, f"loss={loss}"]
    url = ["teacher=vllm_server", f"teacher.url={teacher.url}"]
    teacher.faults.extend([fake_server.slow(0)] * 8 + [fake_server.status(503), fake_server.hang_up])
    train(compose("train", TrainConfig, [*settings, *url, f"run_dir={tmp_path / 'served'}"]))
    train(compose("train", TrainConfig, [*settings, f"run_dir={tmp_path / 'local'}"]))
    found, expected = rows(tmp_path / "served"), rows(tmp_path / "local")
    assert len(found) == len(expected) == 2
    for row, other in zip(found, expected, strict=True):
        watched = [key for key in other if key.startswith(("loss/", "gap/", "coverage/")) and other[key]]
        assert len(watched) > 3
        for key in watched:
            assert float(row[key]) == pytest.approx(float(other[key]), rel=1e-3, abs=1e-4), key
        assert row["server/retries/teacher"] == "2.0"
        assert float(row["server/waited/teacher"]) > 0
        assert not [key for key in other if key.startswith("server/")]
        assert all(describe(key) for key in row if key.startswith("server/"))
    written = [path.read_bytes() for path in (tmp_path / "served").rglob("*") if path.is_file()]
    assert len(written) > 5
    assert not any(KEY.encode() in content for content in written)


def test_a_served_student_is_trained_and_its_restart_recorded(teacher: FakeServer, tmp_path: Path) -> None:
    def restart(student: FakeServer, handler: BaseHTTPRequestHandler) -> bool:
        student.restart()
        return False

    with fake("student") as student:
        student.faults.extend([fake_server.slow(0)] * 4 + [partial(restart, student)])
        settings = [*SMALL, "engine=vllm_server", f"engine.url={student.url}", "task.tasks.sums.turn_tokens=24"]
        url = ["teacher=vllm_server", f"teacher.url=[{student.url},{teacher.url}]"]
        train(compose("train", TrainConfig, [*settings, *url, f"run_dir={tmp_path / 'run'}"]))
        # the start, two updates, the restart; and what training start and validation publish again
        assert student.loads >= 4
    found = rows(tmp_path / "run")
    assert [row["server/restarts/engine"] for row in found] == ["1.0", "1.0"]
    assert float(found[-1]["server/resent/engine"]) >= 1
    assert not (tmp_path / "run" / "weights").exists()
    assert all(abs(float(row["mismatch/k1/sums"])) < 1e-4 for row in found)  # it samples from the trained student


def test_a_run_beside_a_served_student_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    folders = [tmp_path / "whole", tmp_path / "run"]
    with fake("student") as student:
        settings = [*SMALL, "engine=vllm_server", f"engine.url={student.url}", "task.tasks.sums.turn_tokens=24"]
        settings += ["trainer.max_steps=3", "callbacks.checkpoints.every=1", "callbacks.checkpoints.keep=9"]
        train(compose("train", TrainConfig, [*settings, f"run_dir={folders[0]}"]))
        shutil.copytree(*folders)
        for checkpoint in list_checkpoints(folders[1]):
            if steps_of(checkpoint) > 1:
                shutil.rmtree(checkpoint)
        student.restart()  # it has neither the weights of the run's end nor those of its checkpoint
        train(compose("train", TrainConfig, [*settings, f"run_dir={folders[1]}", f"resume={folders[1]}"]))
    losses = [[float(row["loss/train"]) for row in rows(folder)] for folder in folders]
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert all(abs(float(row["mismatch/k1/sums"])) < 1e-4 for row in rows(folders[1]))


def test_teachers_are_not_evaluated_by_a_server_that_holds_the_student(tmp_path: Path) -> None:
    settings = ["task=sums", "engine=vllm_server", "engine.url=http://127.0.0.1:9"]
    with pytest.raises(ConfigError, match="Expected `evaluate_teachers` to be false beside engine=vllm_server"):
        train(compose("train", TrainConfig, [*settings, f"run_dir={tmp_path}"]))
