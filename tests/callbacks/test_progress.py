"""Throughput and the progress bar, with hand-made steps."""

import math
import re
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from opdlight.batch.collate import Collate
from opdlight.callbacks import StageProgress, Throughput
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.distillation.step import Step
from opdlight.losses import SampledToken
from opdlight.models import Student, Teachers
from opdlight.rollout import Sampling
from opdlight.rollout.source import RolloutSource
from opdlight.system.console import _bars, _Pairs
from opdlight.types import Status, Trajectory, Turn
from tests.terminal_screen import Screen
from tests.tiny_models import save_tiny


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
        student=student, teachers=teachers, loss=SampledToken(),
        source=RolloutSource(None, sampling=Sampling()), optimizer=None, schedule=None,  # type: ignore[arg-type]
        collate=Collate(tasks=("a", "b"), shared=teachers.shared_vocabulary, micro_batch_tokens=999),
    )  # fmt: skip
    module.logged = {}  # type: ignore[assignment]
    module.log = lambda key, value, **_: module.logged.__setitem__(key, float(value))  # type: ignore[method-assign, assignment, operator]
    return module


def test_throughput_divides_tokens_by_the_seconds_of_their_stage(folders: tuple[str, str]) -> None:
    module, watch = module_of(folders), Throughput()
    module.timer.seconds = {"rollout": 2.0, "score": 0.5, "backward": 1.5}
    outputs = {"step": Step(trajectories=[trajectory("a", [1], [1] * 10)], loss_tokens=8)}
    for _ in range(2):
        watch.on_train_batch_end(None, module, outputs, None, 0)  # type: ignore[arg-type]
    assert module.logged["throughput/rollout"] == 5.0  # type: ignore[index]
    assert module.logged["throughput/train"] == 4.0  # type: ignore[index]
    assert module.logged["time/score"] == 0.5  # type: ignore[index]
    assert watch.seconds == {"rollout": 4.0, "score": 1.0, "backward": 3.0}
    assert (watch.generated, watch.trained) == (20, 16)


def trainer_of() -> Any:
    current = SimpleNamespace(completed=0)
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=current)))
    figures = {"loss/train": 0.25, "rollout/reward/sums": 0.5}
    return SimpleNamespace(num_training_batches=3, progress_bar_metrics=figures, is_global_zero=True, fit_loop=loop)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Screen:
    """A terminal of so many columns."""
    made = Screen(request.param)
    terminal = Console(file=made, force_terminal=True, width=request.param, highlight=False)  # type: ignore[arg-type]
    monkeypatch.setattr("opdlight.system.console.console", terminal)
    return made


def test_progress_without_a_terminal_prints_plain_lines(
    folders: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    bar, trainer, module = StageProgress(every=2), trainer_of(), module_of(folders)
    bar.setup(trainer, module, "fit")
    bar.on_train_start(trainer, module)
    for batch_idx in range(3):
        with module.timer("rollout"):
            module.source.on_progress(1, 2)  # type: ignore[misc]
        bar.on_train_batch_end(trainer, module, {}, None, batch_idx)
    with module.timer("evaluate sums"):
        module.source.on_progress(1, 2)  # type: ignore[misc]
    bar.teardown(trainer, module, "fit")
    figures = "loss/train 0.250  rollout/reward/sums 0.500"
    assert capsys.readouterr().out.splitlines() == [f"update 1/3  {figures}", f"update 3/3  {figures}", "evaluate sums"]


def test_progress_counts_updates_also_where_a_rollout_makes_several(
    folders: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    bar, trainer, module = StageProgress(), trainer_of(), module_of(folders)
    module.mini_batches = 2
    bar.on_train_start(trainer, module)
    for batch_idx in range(3):
        bar.on_train_batch_end(trainer, module, {}, None, batch_idx)
    bar.teardown(trainer, module, "fit")
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["update 2/6", "update 6/6"]


@pytest.mark.parametrize(
    ("screen", "figures"),
    [(60, "loss/train 0.250"), (80, "loss/train 0.250"), (160, "loss/train 0.250  rollout/reward/sums 0.500")],
    indirect=["screen"],
)
def test_progress_on_a_terminal_shows_stage_and_trajectories(
    screen: Screen, figures: str, folders: tuple[str, str]
) -> None:
    bar, trainer, module = StageProgress(), trainer_of(), module_of(folders)
    trainer.num_training_batches = math.inf
    bar.setup(trainer, module, "fit")
    trainer.num_training_batches = 3  # Lightning knows it only now
    bar.on_train_start(trainer, module)
    with module.timer("rollout"):
        module.source.on_progress(3, 8)  # type: ignore[misc]
        bar.on_train_batch_end(trainer, module, {}, None, 0)
        _bars[0].refresh()
        updates, rollout = (line for line in screen.lines if line.strip())
    assert re.fullmatch(rf"updates +[━╸╺]+ 1/3 +0:00:00 +{figures} *", updates)
    assert re.match(r"rollout +[━╸╺]+ 3/8 ", rollout)
    with module.timer("backward"):
        _bars[0].refresh()
        assert any(re.match(r"backward +━+ +0:00:00", line) for line in screen.lines)
    bar.teardown(trainer, module, "fit")
    assert "".join(screen.lines).strip() == ""
    assert screen.cursor_shown


def test_figures_are_shown_whole_or_not_at_all() -> None:
    pairs = _Pairs(["a 0.1", "bb 0.2", "c 3"])
    assert [pairs.fitting(width) for width in (4, 5, 12, 13, 17, 18)] == [
        "", "a 0.1", "a 0.1", "a 0.1  bb 0.2", "a 0.1  bb 0.2", "a 0.1  bb 0.2  c 3"
    ]  # fmt: skip
