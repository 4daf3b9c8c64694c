"""The real thing, small: real vLLM, real ALFWorld, the bundled models, through the entry points."""

import csv
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from opdlight.config import CONF, EvaluateConfig, SftConfig, TrainConfig, compose
from opdlight.evaluate.run import evaluate
from opdlight.metrics.glossary import describe
from opdlight.sft.run import sft
from opdlight.train.__main__ import main
from opdlight.train.run import train

SMALL = ["rollout.groups=2", "rollout.group_size=2", "trainer.max_steps=2"]
EPISODES = ["task.tasks.sums.episodes=4", "task.tasks.alfworld.episodes=4"]


def test_train_evaluate_and_sft_with_the_real_engine(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    cfg = compose("train", TrainConfig, [*SMALL, *EPISODES, f"run_dir={folder}"])
    scores = train(cfg)
    assert set(scores) == {"success/sums", "success/alfworld"}

    summary = json.loads((folder / "summary.json").read_text())
    for task in ("sums", "alfworld"):
        for when in ("before", "after", "teacher"):
            result = summary["tasks"][task][when]
            assert result["episodes"] == 4
            assert 0 <= result["low"] <= result["success"] <= result["high"] <= 1
    assert summary["tokens"]["generated"] > 0
    assert summary["tokens_per_second"]["rollout"] > 0
    assert summary["seconds"]["train: rollout"] > 0
    assert (folder.parent / "latest").resolve() == folder.resolve()
    for name in ("config.yaml", "versions.json", "curves.png", "trajectories.jsonl", "profile.csv", "token_gaps.jsonl"):
        assert (folder / name).stat().st_size > 0
    assert list(folder.glob("events.out.tfevents.*"))
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [k for k in rows[0] if k not in ("epoch", "step") and describe(k) is None] == []
    assert sum(bool(r["loss/train"]) for r in rows) == 2

    model = AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.float32)
    start = AutoModelForCausalLM.from_pretrained(Path("opdlight/assets/lab/student"), dtype=torch.float32)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(folder / "student").chat_template

    again = tmp_path / "runs" / "evaluation"
    again.mkdir()
    overrides = ["task=sums", f"model.student.model={folder / 'student'}", "samples=2", f"run_dir={again}"]
    measured = evaluate(compose("evaluate", EvaluateConfig, [*overrides, "task.tasks.sums.episodes=4"]))
    assert 0 <= measured["success/sums"] <= 1
    result = json.loads((again / "evaluation.json").read_text())["sums"]
    assert (result["episodes"], result["samples"]) == (4, 2)
    assert len((again / "trajectories.jsonl").read_text().splitlines()) == 8
    assert (folder.parent / "latest").resolve() == folder.resolve()  # still the run with a student

    tuned = tmp_path / "sft"
    overrides = ["demonstrations.episodes=6", "demonstrations.workers=1", "batch_size=2", "trainer.max_steps=2"]
    loss = sft(compose("sft", SftConfig, [*overrides, f"run_dir={tuned}"]))
    assert 0 < loss["sft/loss"] < 10
    assert (tuned / "student" / "model.safetensors").is_file()


TASKS = ("sums", "alfworld", "agent_math", "frozen_lake", "easy_sums")
LOSSES = ("topk_rkl", "sampled_token")
TRAINERS = ("cpu", "gpu")


def composed(task: str, loss: str, trainer: str) -> list[str]:
    """The overrides of a small run of these options."""
    teacher = [f"task.tasks.{task}.teacher=lab/teacher-sums"] if task in ("frozen_lake", "easy_sums") else []
    return [f"task={task}", f"loss={loss}", f"trainer={trainer}", *SMALL, *teacher]


def test_every_composition_loads() -> None:
    for options in itertools.product(TASKS, LOSSES, TRAINERS):
        compose("train", TrainConfig, composed(*options))


# each task, and each pair of loss and trainer
@pytest.mark.parametrize(
    ("task", "loss", "trainer"),
    [
        ("sums", "sampled_token", "cpu"),
        ("alfworld", "topk_rkl", "cpu"),
        ("agent_math", "topk_rkl", "gpu"),
        ("frozen_lake", "sampled_token", "gpu"),
        ("easy_sums", "topk_rkl", "cpu"),
    ],
)
@pytest.mark.usefixtures("no_curves")
def test_every_task_starts(task: str, loss: str, trainer: str, tmp_path: Path) -> None:
    overrides = [*composed(task, loss, trainer), f"run_dir={tmp_path / 'run'}"]
    overrides += [f"task.tasks.{name}.episodes=1" for name in {"agent_math": ["sums", "alfworld"]}.get(task, [task])]
    fake = ["engine._target_=tests.fakes.AnsweringEngine", "trainer.max_steps=1", "evaluate_teachers=false"]
    if trainer == "gpu" and not torch.cuda.is_available():
        fake += ["trainer.accelerator=cpu"]
    train(compose("train", TrainConfig, [*overrides, *fake]))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["tasks"]


@pytest.mark.parametrize("loss", sorted(path.stem for path in (CONF / "loss").glob("*.yaml")))
@pytest.mark.usefixtures("no_curves")
def test_every_loss_trains(loss: str, tmp_path: Path) -> None:
    overrides = [
        f"loss={loss}",
        "task=sums",
        f"run_dir={tmp_path / 'run'}",
        *SMALL,
        "rollout.mini_batches=2",
        "trainer.max_steps=4",
    ]
    fake = ["engine._target_=tests.fakes.AnsweringEngine", "task.tasks.sums.episodes=1", "evaluate_teachers=false"]
    train(compose("train", TrainConfig, [*overrides, *fake]))
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["loss/train"]) for row in rows if row["loss/train"]]
    assert len(losses) == 2  # rollouts of two updates each
    assert all(math.isfinite(value) for value in losses)
    assert len([row for row in rows if row["val/success/sums"]]) == 2  # before the first and after the last update


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.k=1", r"Cannot build `loss`: Expected `loss.k` to be at least 2, but got 1"),
        ("mask.tokens=[-1]", "Expected `mask.tokens[0]` to be int ≥ 0 or str or a list of int ≥ 0 or str, but got -1"),
        ("loss=topk_jsd loss.mix=2.0", "Expected `loss.mix` to be float in (0, 1) or null, but got 2.0"),
        ("loss=sampled_token_reward", "Expected `rollout.group_size` to be at least 2 beside `loss.reward_weight`"),
        ("loss=importance_weighted sampling.temperature=0.7", "Expected `sampling.temperature` to be 1 for importance"),
        ("max_not_finite=0", "Expected `max_not_finite` to be int ≥ 1, but got 0"),
        ("rollout.mini_batches=0", "Expected `rollout.mini_batches` to be int ≥ 1, but got 0"),
        ("optimizer.lr=-1", "Expected `optimizer.lr` to be float > 0, but got -1"),
        ("trainer.accelerator=tpu", r"Cannot build `trainer`: "),
        ("trainer.devices=[9999]", r"Cannot build `trainer`: "),
    ],
)
def test_a_part_that_refuses_its_arguments_is_one_message(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = "engine._target_=tests.fakes.AnsweringEngine"
    folder = f"hydra.run.dir={tmp_path / 'run'}"
    monkeypatch.setattr("sys.argv", ["train", "task=sums", *override.split(), engine, folder])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert not any(tmp_path.iterdir()), "no folder of a run that was refused"
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
