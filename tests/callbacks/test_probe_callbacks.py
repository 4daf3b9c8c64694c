"""The callbacks that use the probe, on results made by hand."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from opdlight.callbacks import (
    Alarms,
    DepthProfile,
    EngineMismatch,
    GradientNoise,
    ModelEntropy,
    ProbeCallback,
    RolloutMetrics,
    Rule,
    SignalBalance,
    TeacherGap,
    TeacherSupportCoverage,
    TokenGaps,
)
from opdlight.callbacks.profile import COLUMNS
from opdlight.callbacks.token_gaps import token_table
from opdlight.distillation.step import Step
from opdlight.metrics.glossary import describe
from opdlight.models.probe import ProbeResult
from opdlight.types import Status, Trajectory
from tests.callbacks.probe_results import Logged, made_up
from tests.tiny_models import tiny_tokenizer

FIRST: Any = SimpleNamespace(is_global_zero=True)
ALONE: Any = SimpleNamespace(world_size=1)


def logged(callback: ProbeCallback, *results: ProbeResult) -> dict[str, float]:
    module = Logged()
    callback.on_train_batch_end(FIRST, module, {"step": Step(probes=results)}, None, 0)  # type: ignore[arg-type]
    assert all(describe(key) for key in module.values), module.values.keys()
    return module.values


def test_coverage_is_mass_on_the_teachers_two_best() -> None:
    found = logged(TeacherSupportCoverage(), made_up([0, 1, 5]))
    assert found["coverage/teacher_mass/a"] == pytest.approx((0.7 + 0.75 + 0.7) / 3)
    assert found["coverage/student_mass/a"] == pytest.approx((0.7 + 0.75 + 0.1) / 3)
    assert found["coverage/sampled_in_support/a"] == pytest.approx(2 / 3)
    assert found["coverage/overlap/a"] == pytest.approx((1 + 1 + 0) / 3)


def test_tasks_and_micro_batches_are_put_together() -> None:
    watch = TeacherSupportCoverage()
    both = made_up([0, 1, 5], task=torch.tensor([0, 1, 1]))
    found = logged(watch, both, made_up([0, 1], task=torch.tensor([1, 1])))
    assert found["coverage/student_mass/a"] == pytest.approx(0.7)
    assert found["coverage/student_mass/b"] == pytest.approx((0.75 + 0.1 + 0.7 + 0.75) / 4)
    assert logged(watch) == {}


def test_gap_and_kl_estimates_are_those_of_the_sampled_tokens() -> None:
    found = logged(TeacherGap(), made_up([0, 1, 5]))
    gaps = [0.0, math.log(0.6 / 0.15), math.log(0.5 / 0.05)]  # ascending
    assert found["gap/q50/a"] == pytest.approx(gaps[1])
    assert found["gap/q10/a"] == pytest.approx(0.2 * gaps[1])  # linear between the first two
    assert found["gap/q90/a"] == pytest.approx(gaps[1] + 0.8 * (gaps[2] - gaps[1]))
    assert found["kl/k1/a"] == pytest.approx(sum(gaps) / 3)
    assert found["kl/k2/a"] == pytest.approx(sum(g * g / 2 for g in gaps) / 3)
    assert found["kl/k3/a"] == pytest.approx(sum(math.exp(-g) - 1 + g for g in gaps) / 3)


def test_balance_counts_signs_and_concentration() -> None:
    found = logged(SignalBalance(), made_up([0, 0, 5]))  # rewards 0, log 4, −log 10
    up, down = math.log(4), math.log(10)
    assert found["signal/negative/a"] == pytest.approx(1 / 3)
    assert found["signal/negative_mass/a"] == pytest.approx(down / (up + down))
    assert found["signal/top_1/a"] == pytest.approx(down / (up + down))  # one token of three
    same = logged(SignalBalance(), made_up([0]))
    assert same == {f"signal/{n}/a": 0.0 for n in ("negative", "negative_mass", "top_1", "top_10")}


def test_entropy_of_both_and_of_one() -> None:
    found = logged(ModelEntropy(), made_up([0]))
    entropy = -sum(p * math.log(p) for p in (0.5, 0.2, 0.1, 0.1, 0.05, 0.05))
    assert found == {"entropy/student/a": pytest.approx(entropy), "entropy/teacher/a": pytest.approx(entropy)}
    assert set(logged(ModelEntropy(), made_up([0], teacher_entropy=None))) == {"entropy/student/a"}


def test_mismatch_compares_the_engine_with_the_trainer() -> None:
    one = made_up([0, 1])
    found = logged(EngineMismatch(cap=1.5), made_up([0, 1], engine=one.engine - torch.tensor([0.5, 0.0])))
    assert found["mismatch/k1/a"] == pytest.approx(-0.25)
    assert found["mismatch/clipped/a"] == pytest.approx(0.5)  # e^½ = 1.65


def test_token_table_is_a_sum_token_by_token() -> None:
    table = {row["id"]: row for row in token_table(made_up([1, 1, 5]))}  # rewards 0, −log 4, −log 10
    total = math.log(4) + math.log(10)
    assert table[1] == {
        "id": 1,
        "count": 2,
        "mean": pytest.approx(-math.log(4) / 2),
        "share": pytest.approx(math.log(4) / total),
    }
    assert table[5]["share"] == pytest.approx(math.log(10) / total)
    assert [row["id"] for row in token_table(made_up([1, 1, 5]))] == [5, 1]


@pytest.fixture
def student_module(monkeypatch: pytest.MonkeyPatch) -> Logged:
    module = Logged()
    module.student = SimpleNamespace(tokenizer=tiny_tokenizer())  # type: ignore[attr-defined]
    monkeypatch.setattr("opdlight.callbacks.token_gaps.OnPolicyDistillation", Logged)
    return module


def test_token_gaps_are_written_by_name(student_module: Logged, tmp_path: Path) -> None:
    watch = TokenGaps(str(tmp_path), every=2, rows=1)
    for step in range(3):
        outputs = {"step": Step(probes=[made_up([1, 1, 5])])}
        watch.on_train_batch_end(FIRST, student_module, outputs, None, step)  # type: ignore[arg-type]
    lines = [json.loads(line) for line in (tmp_path / "token_gaps.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [0, 2]
    (row,) = lines[0]["rows"]
    assert (row["id"], row["special"], lines[0]["tokens"]) == (5, False, 3)
    # id 1 is <|im_start|>, the one added token here
    share = math.log(4) / (math.log(4) + math.log(10))
    assert student_module.values == {"gap/special_share/a": pytest.approx(share)}


def test_profile_has_a_line_a_bucket(tmp_path: Path) -> None:
    watch = DepthProfile(str(tmp_path))
    both = made_up([0, 1, 5], position=torch.tensor([0, 5, 6]), turn=torch.tensor([0, 0, 2]))
    for step in (0, 1):
        watch.on_train_batch_end(FIRST, Logged(), {"step": Step(probes=[both])}, None, step)  # type: ignore[arg-type]
    with (tmp_path / "profile.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [(r["update"], r["axis"], r["start"], r["end"], r["tokens"]) for r in rows[:4]] == [
        ("0", "position", "0", "1", "1"),
        ("0", "position", "4", "8", "2"),
        ("0", "turn", "0", "1", "2"),
        ("0", "turn", "2", "3", "1"),
    ]
    assert len(rows) == 8
    assert float(rows[1]["student_mass"]) == pytest.approx((0.75 + 0.1) / 2)
    assert float(rows[1]["gap_q50"]) == pytest.approx((math.log(4) + math.log(10)) / 2, rel=1e-4)
    assert float(rows[1]["abs_gap"]) == pytest.approx((math.log(4) + math.log(10)) / 2, rel=1e-4)


class Linear(torch.nn.Module):
    """A module whose gradient tests set by hand."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(size))
        self.values: dict[str, float] = {}
        self.log: Callable[..., None] = lambda key, value, **_: self.values.__setitem__(key, float(value))


def test_gradient_noise_is_the_variance_between_micro_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    module, watch = Linear(4000), GradientNoise()
    watch.on_fit_start(ALONE, module)  # type: ignore[arg-type]
    tokens = [30, 50, 20]
    true = torch.randn(4000, generator=generator)
    estimates, exact = [], 4000 * 4.0 / 100  # each token's gradient has variance 4 a weight; 100 tokens a step
    for update in range(40):
        out_of_memory = [[60], [30, 50], tokens] if update % 2 else [tokens]  # begun again in more micro-batches
        for attempt in out_of_memory:
            module.weight.grad = None
            for n in attempt:
                watch.on_before_backward(ALONE, module, torch.zeros(()))  # type: ignore[arg-type]
                each = true + 2.0 * torch.randn(4000, generator=generator) / n**0.5
                so_far = torch.zeros(4000) if module.weight.grad is None else module.weight.grad
                module.weight.grad = so_far + n / 100 * each
                watch.on_after_backward(ALONE, module)  # type: ignore[arg-type]
        outputs = {"step": Step(shares=[[n / 100 for n in tokens]])}
        watch.on_train_batch_end(ALONE, module, outputs, None, update)  # type: ignore[arg-type]
        estimates.append(module.values["optimizer/gradient_variance"])
    assert sum(estimates) / 40 == pytest.approx(exact, rel=0.05)
    snr = float((true**2).sum()) / exact
    assert module.values["optimizer/gradient_snr"] == pytest.approx(snr, rel=0.2)


def test_gradient_noise_needs_two_micro_batches_of_one_update() -> None:
    module, watch = Linear(10), GradientNoise(places=4)
    watch.on_fit_start(ALONE, module)  # type: ignore[arg-type]
    for _ in range(2):  # two updates of a rollout, one micro-batch each
        module.weight.grad = None
        watch.on_before_backward(ALONE, module, torch.zeros(()))  # type: ignore[arg-type]
        module.weight.grad = torch.ones(10)
        watch.on_after_backward(ALONE, module)  # type: ignore[arg-type]
    watch.on_train_batch_end(ALONE, module, {"step": Step(shares=[[1.0], [1.0]])}, None, 0)  # type: ignore[arg-type]
    assert module.values == {}


WON = Trajectory(task="a", group=0, seed=0, turns=[], reward=1.0, status=Status.SUCCESS)


class Own(L.LightningModule):
    """A project with its own training step: it probes by itself and returns them beside the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> dict[str, Any]:
        return {"loss": (self.weight * batch).sum(), "step": Step(probes=[made_up([0, 1, 5])], trajectories=[WON])}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_the_watches_work_in_anybodys_lightning_module(tmp_path: Path) -> None:
    watches = [TeacherSupportCoverage(), TeacherGap(), SignalBalance(), ModelEntropy(), EngineMismatch()]
    alarms = Alarms({"gap": Rule(key="kl/k1/*", above=0.0, meaning="", advice="")}, str(tmp_path), patience=1)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=2, logger=False,
        callbacks=[*watches, RolloutMetrics(), DepthProfile(str(tmp_path)), alarms],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Own(), torch.utils.data.DataLoader(torch.ones(4, 3), num_workers=0))
    assert trainer.callback_metrics["coverage/student_mass/a"] == pytest.approx((0.7 + 0.75 + 0.1) / 3)
    assert trainer.callback_metrics["kl/k1/a"] == pytest.approx((math.log(4) + math.log(10)) / 3)
    assert trainer.callback_metrics["rollout/success/a"] == trainer.callback_metrics["alarms/on"] == 1
    assert len((tmp_path / "profile.csv").read_text().splitlines()) == 1 + 2 * (3 + 1)
