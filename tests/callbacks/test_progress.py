"""Throughput and the progress bar, with hand-made steps."""

import io
import math
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from opdlight.callbacks import StageProgress, Throughput
from opdlight.collate import Collate
from opdlight.losses import SampledToken
from opdlight.models import Student, Teachers
from opdlight.module import OnPolicyDistillation
from opdlight.rollout import Sampling
from opdlight.types import Status, Trajectory, Turn
from tests.tiny import save_tiny


def trajectory(task: str, prompt: list[int], completion: list[int]) -> Trajectory:
    turn = Turn(
        prompt_ids=prompt,
        completion_ids=completion,
        sampled_logprobs=[0.0] * len(completion),
        finish_reason="stop",
        policy_version=3,
        reward=1.0,
    )
    return Trajectory(task=task, group=0, seed=5, turns=[turn], reward=1.0, status=Status.SUCCESS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return str(save_tiny(folder / "student", 1)), str(save_tiny(folder / "teacher", 2))


def module_of(folders: tuple[str, str]) -> OnPolicyDistillation:
    student = Student(folders[0])
    teachers = Teachers({"a": folders[1], "b": folders[1]}, student)
    module = OnPolicyDistillation(
        student=student, teachers=teachers, loss=SampledToken(), collector=None, optimizer=None, schedule=None,  # type: ignore[arg-type]
        collate=Collate(tasks=("a", "b"), pad_id=0, shared=teachers.shared_vocabulary, micro_batch_tokens=999),
        sampling=Sampling(), evaluation=Sampling(), max_grad_norm=1.0, seed=0,
    )  # fmt: skip
    module.logged = {}  # type: ignore[assignment]
    module.log = lambda key, value, **_: module.logged.__setitem__(key, float(value))  # type: ignore[method-assign, assignment, operator]
    return module


def test_throughput_divides_tokens_by_the_seconds_of_their_stage(folders: tuple[str, str]) -> None:
    module, watch = module_of(folders), Throughput()
    module.stage.seconds = {"rollout": 2.0, "score": 0.5, "backward": 1.5}
    outputs = {"trajectories": [trajectory("a", [1], [1] * 10)], "loss_tokens": 8}
    for _ in range(2):
        watch.on_train_batch_end(None, module, outputs, None, 0)  # type: ignore[arg-type]
    assert module.logged["throughput/rollout"] == 5.0  # type: ignore[index]
    assert module.logged["throughput/train"] == 4.0  # type: ignore[index]
    assert module.logged["time/score"] == 0.5  # type: ignore[index]
    assert watch.seconds == {"rollout": 4.0, "score": 1.0, "backward": 3.0}
    assert (watch.generated, watch.trained) == (20, 16)


def test_progress_without_a_terminal_prints_plain_lines(folders: tuple[str, str]) -> None:
    bar, text = StageProgress(every=2), io.StringIO()
    bar.console = Console(file=text, force_terminal=False)
    trainer: Any = SimpleNamespace(
        num_training_batches=3, progress_bar_metrics={"loss/train": 0.25}, is_global_zero=True
    )
    for batch_idx in range(3):
        bar.on_train_batch_end(trainer, module_of(folders), {}, None, batch_idx)
    assert text.getvalue().splitlines() == ["update 1/3  loss/train 0.250", "update 3/3  loss/train 0.250"]


def test_progress_on_a_terminal_shows_stage_and_trajectories(folders: tuple[str, str]) -> None:
    bar, text = StageProgress(), io.StringIO()
    bar.console = Console(file=text, force_terminal=True, width=120)
    module = module_of(folders)
    trainer: Any = SimpleNamespace(
        num_training_batches=math.inf, progress_bar_metrics={"loss/train": 0.25}, is_global_zero=True
    )
    bar.setup(trainer, module, "fit")
    trainer.num_training_batches = 3  # Lightning knows it only now
    bar.on_train_start(trainer, module)
    module.stage.name = "rollout"
    assert module.on_progress is not None
    module.on_progress(3, 8)
    bar.on_train_batch_end(trainer, module, {}, None, 0)
    bar.teardown(trainer, module, "fit")
    assert "rollout" in text.getvalue()
    assert "3/8" in text.getvalue()
    assert "1/3" in text.getvalue()
    assert "loss/train 0.250" in text.getvalue()
