"""Contexts and K: a good patient passes, each broken one is named and repaired."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opdlight.config import TrainConfig, compose
from opdlight.doctor.examination import examine
from opdlight.doctor.findings import Finding, Verdict
from opdlight.doctor.limits import check_context, check_support
from opdlight.doctor.patient import Patient
from opdlight.losses import SampledToken, SupportMatching, TurnWeighted
from tests.doctor.cases import errand, patient


def context(one: Patient) -> Finding:
    (finding,) = check_context(one, "errand")
    return finding


def pasted(finding: Finding) -> dict[str, Any]:
    """The proposed overrides, composed; the tests' task stands where the line names it."""
    line = finding.repair.replace("tasks.errand", "tasks.sums")
    cfg = compose("train", TrainConfig, ["task=sums", *shlex.split(line)])
    return {"task": cfg.task.tasks.sums, "engine": cfg.engine, "loss": cfg.loss, "cfg": cfg}


def test_limits_that_fit_pass(tmp_path: Path) -> None:
    finding = context(patient(tmp_path))
    assert (finding.verdict, finding.repair) == (Verdict.PASS, "")
    assert finding.evidence.startswith("prompts of ")
    assert "engine 512, student 512, teacher 512" in finding.evidence


@pytest.mark.parametrize(
    ("limits", "problem", "verdict"),
    [
        ({"trajectory_tokens": 20}, "a prompt leaves no room", Verdict.FAIL),
        ({"trajectory_tokens": 50, "turn_tokens": 40}, "the first answer can be cut", Verdict.WARN),
        ({"trajectory_tokens": 600}, "longer than the context of the student", Verdict.FAIL),
    ],
)
def test_limits_that_do_not_fit_are_repaired(
    limits: dict[str, int], problem: str, verdict: Verdict, tmp_path: Path
) -> None:
    one = patient(tmp_path, task=errand(**limits))
    finding = context(one)
    assert problem in finding.evidence
    assert finding.verdict is verdict
    fixed = pasted(finding)["task"].trajectory_tokens
    task = errand(**{**limits, "trajectory_tokens": fixed})
    assert context(replace(one, tasks={"errand": task})).verdict is Verdict.PASS


def test_a_context_of_the_engine_that_is_too_small_is_repaired(tmp_path: Path) -> None:
    one = patient(tmp_path, engine={"max_model_len": 100})
    finding = context(one)
    assert (finding.verdict, finding.repair) == (Verdict.FAIL, "model.max_model_len=256")
    assert context(replace(one, engine={"actors": 2, "engine": {"max_model_len": 100}})) == finding
    assert context(replace(one, engine={"max_model_len": pasted(finding)["engine"].max_model_len})).repair == ""
    both = context(replace(one, engine={"max_model_len": 20}, tasks={"errand": errand(trajectory_tokens=20)}))
    assert "trajectory_tokens=" in both.repair
    assert "model.max_model_len=" in both.repair


def test_a_teacher_with_a_short_context_is_named(tmp_path: Path) -> None:
    one = patient(tmp_path, teacher_changes={"max_position_embeddings": 128})
    finding = context(one)
    assert (finding.verdict, finding.repair) == (Verdict.FAIL, "task.tasks.errand.trajectory_tokens=128")
    assert "context of the teacher" in finding.evidence
    tiny = context(patient(tmp_path / "b", teacher_changes={"max_position_embeddings": 16}))
    assert "fills the context of a model" in tiny.evidence


def test_an_environment_that_cannot_be_made_is_a_finding(tmp_path: Path) -> None:
    one = patient(tmp_path)
    broken = replace(one, tasks={"errand": replace(one.tasks["errand"], env={"id": "NoSuchEnv-v0"})})
    found = {f.check: f for f in examine(broken)}
    assert found["context"].verdict is Verdict.FAIL
    assert "NoSuchEnv" in found["context"].evidence
    assert found["vocabulary"].verdict is Verdict.PASS


def test_k_within_the_shared_ids_passes_and_beyond_is_repaired(tmp_path: Path) -> None:
    one = patient(tmp_path)
    assert check_support(one)[0].verdict is Verdict.PASS
    large = replace(one, loss=SupportMatching(k=5000), loss_config={"support": "teacher_top_k", "k": 5000})
    (finding,) = check_support(large)
    assert (finding.verdict, finding.repair) == (Verdict.FAIL, f"loss.k={len(one.shared)}")
    repaired = replace(one, loss=SupportMatching(k=pasted(finding)["loss"].k))
    assert check_support(repaired)[0].verdict is Verdict.WARN  # the whole vocabulary: there is a cheaper way to say so
    inside = TurnWeighted(loss=SupportMatching(k=5000))
    (finding,) = check_support(replace(one, loss=inside, loss_config={"limit": 0.2, "loss": {"k": 5000}}))
    assert finding.repair == f"loss.loss.k={len(one.shared)}"
    (finding,) = check_support(replace(one, engine={"max_logprobs": 5}))
    assert (finding.verdict, finding.repair) == (Verdict.FAIL, "engine.max_logprobs=8")
    for free in (SampledToken(), SupportMatching(support="full_vocabulary")):
        assert check_support(replace(one, loss=free))[0].verdict is Verdict.PASS
