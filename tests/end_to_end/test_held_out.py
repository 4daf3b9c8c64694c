"""A file of questions, from its rows to the report: trained, held out, and a task that is only evaluated."""

import csv
import json
from contextlib import suppress
from pathlib import Path

import pytest

from opdlight.config import DoctorConfig, EvaluateConfig, TrainConfig, compose
from opdlight.doctor.examination import examine_config
from opdlight.evaluate.run import evaluate
from opdlight.metrics.glossary import describe
from opdlight.report.build import report
from opdlight.train.run import train

FAKE = "engine._target_=tests.fakes.AnsweringEngine"


def questions(path: Path, first: int, count: int) -> Path:
    path.write_text("".join(f'{{"question": "{n} + 1 = ?", "answer": {n + 1}}}\n' for n in range(first, first + count)))
    return path


@pytest.fixture
def task(tmp_path: Path) -> list[str]:
    """20 questions to train on, 3 of its own and 5 of another file to evaluate with."""
    train, valid, other = (
        questions(tmp_path / f"{name}.jsonl", first, count)
        for name, first, count in (("train", 0, 20), ("valid", 100, 3), ("other", 200, 5))
    )
    return [
        "task=math_dataset",
        f"task.tasks.math.env.path={train}",
        f"task.tasks.math.env.held_out={{path: {valid}}}",
        "task.tasks.math.teacher=lab/teacher-sums",
        "task.tasks.math.turn_tokens=8",
        "task.tasks.math.trajectory_tokens=128",
        "+task.tasks.other={_target_: opdlight.data.Task, weight: 0, episodes: null, samples: 2, turn_tokens: 8,"
        f" trajectory_tokens: 128, env: {{id: opdlight/MathDataset-v0, held_out: {{path: {other}}}}}}}",
    ]


def test_train_report_evaluate_and_doctor(task: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    small = ["rollout.groups=4", "trainer.max_steps=3", FAKE]
    train(compose("train", TrainConfig, [*task, *small, f"run_dir={run}"]))
    summary = json.loads((run / "summary.json").read_text())["tasks"]
    assert {n: (t["after"]["episodes"], t["after"]["samples"]) for n, t in summary.items()} == {
        "math": (3, 1),
        "other": (5, 2),
    }
    assert summary["other"]["teacher"] is None
    assert summary["math"]["teacher"]["episodes"] == 3
    assert set(summary["other"]["after"]["pass_at"]) == {"1", "2"}
    table = capsys.readouterr().out
    assert "other (avg@2)" in table
    assert "–" in next(line for line in table.splitlines() if "other (avg@2)" in line)

    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["data/epoch/math"]) for r in rows if r["data/epoch/math"]] == pytest.approx([0.2, 0.4, 0.6])
    assert not {key for key in rows[0] if key.endswith("/other")} - {"val/success/other", "val/reward/other"}
    assert [key for key in rows[0] if key not in ("epoch", "step") and describe(key) is None] == []
    held_out = [json.loads(line) for line in (run / "held_out.jsonl").read_text().splitlines()]
    assert [(line["task"], line["step"], len(line["episodes"])) for line in held_out] == [
        ("math", 0, 3), ("other", 0, 10), ("math", 3, 3), ("other", 3, 10),
    ]  # fmt: skip
    assert {tuple(turns) for line in held_out for _, _, _, *turns in line["episodes"]} == {(1,)}
    trajectories = [json.loads(line) for line in (run / "trajectories.jsonl").read_text().splitlines()]
    assert {(t["task"], t["stage"]) for t in trajectories} == {("math", "train"), ("math", "val"), ("other", "val")}
    alone = next(t for t in trajectories if t["task"] == "other")
    assert set(alone["turns"][0]["teacher"]) == {None}
    asked = {
        stage: {t["turns"][0]["prompt"] for t in trajectories if t["stage"] == stage} for stage in ("train", "val")
    }
    assert not asked["train"] & asked["val"]
    assert "5 × 2" in report(str(run)).read_text(encoding="utf-8")

    evaluate(compose("evaluate", EvaluateConfig, [*task, "samples=4", FAKE, f"run_dir={tmp_path / 'evaluation'}"]))
    result = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert {n: (r["episodes"], r["samples"], set(r["pass_at"])) for n, r in result.items()} == {
        "math": (3, 4, {"1", "2", "4"}),
        "other": (5, 4, {"1", "2", "4"}),
    }
    evaluate(compose("evaluate", EvaluateConfig, [*task, FAKE, f"run_dir={tmp_path / 'evaluation'}"]))
    result = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert {n: r["samples"] for n, r in result.items()} == {"math": 1, "other": 2}

    out = tmp_path / "doctor.json"
    with suppress(SystemExit):  # the lab teacher may not like the answers
        examine_config(compose("doctor", DoctorConfig, [*task, f"out={out}"]))
    assert "could not be checked" not in out.read_text(encoding="utf-8")
    assert '"other"' in out.read_text(encoding="utf-8")
