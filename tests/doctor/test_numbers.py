"""Scores, answers and precision: a good patient passes, each broken one is named and repaired."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from opdlight.config import CONF, TrainConfig, compose, instantiate
from opdlight.doctor import scores
from opdlight.doctor.answers import check_answers, first_turns
from opdlight.doctor.examination import examine
from opdlight.doctor.findings import Finding, Verdict, override, worst
from opdlight.doctor.patient import Patient
from opdlight.doctor.precision import check_precision
from opdlight.doctor.scores import at_the_teacher, check_determinism, check_identical, own_loss
from opdlight.errors import ConfigError
from opdlight.losses import ImportanceWeighted, SampledToken, SpecialTokenMask, SupportMatching
from opdlight.models import ScoreRequest, Student, Teacher
from opdlight.types import Status, TeacherScores, TokenBatch, Trajectory, Turn
from tests.doctor.cases import examined, patient, with_tokens
from tests.tiny_models import CHATML, tiny_tokenizer


def pasted(finding: Finding) -> dict[str, Any]:
    """The proposed overrides, composed; the tests' task stands where the line names it."""
    line = finding.repair.replace("tasks.errand", "tasks.sums")
    cfg = compose("train", TrainConfig, ["task=sums", *shlex.split(line)])
    return {"task": cfg.task.tasks.sums, "engine": cfg.engine, "loss": cfg.loss, "cfg": cfg}


class Wavering(Teacher):
    """A teacher whose answer depends on chance, or on the width of the batch."""

    def __init__(self, model: str, noise: float = 0.0, width: float = 0.0) -> None:
        super().__init__(model)
        self.noise, self.per_column, self.calls = noise, width, 0

    def score(self, batch: TokenBatch, request: ScoreRequest) -> TeacherScores:
        found = super().score(batch, request)
        assert found.sampled is not None
        self.calls += 1
        return replace(
            found, sampled=found.sampled + self.noise * self.calls + self.per_column * batch.input_ids.shape[1]
        )


def test_a_teacher_that_answers_the_same_passes(tmp_path: Path) -> None:
    finding = examined(check_determinism, patient(tmp_path))
    assert finding.verdict is Verdict.PASS
    assert "the same batch twice differs by up to 0.0e+00" in finding.evidence


@pytest.mark.parametrize(
    ("noise", "width", "dtype", "verdict", "problem"),
    [
        (0.01, 0.0, "float32", Verdict.FAIL, "draws random numbers"),
        (float("nan"), 0.0, "float32", Verdict.FAIL, "draws random numbers"),
        (0.0, 0.0001, "float32", Verdict.WARN, "what stands beside a row"),
        (0.0, 0.01, "float32", Verdict.FAIL, "what stands beside a row"),
        (0.0, 0.02, "bfloat16", Verdict.WARN, "what stands beside a row"),
        (0.0, 0.0001, "bfloat16", Verdict.PASS, ""),
    ],
)
def test_a_teacher_that_wavers_is_found(
    noise: float, width: float, dtype: str, verdict: Verdict, problem: str, tmp_path: Path
) -> None:
    one = patient(tmp_path, compute_dtype=dtype)
    one = replace(one, teachers={"errand": Wavering(str(tmp_path / "teacher"), noise, width)})
    finding = examined(check_determinism, one)
    assert finding.verdict is verdict
    assert problem in finding.evidence
    assert (
        dtype == "bfloat16" and finding.repair == "model.dtype=float32 model.compute_dtype=float32"
    ) or finding.repair.startswith("task.tasks.errand.teacher=" if verdict is not Verdict.PASS else "")


def test_rows_with_ids_beyond_the_teacher_are_a_finding_and_no_crash(tmp_path: Path) -> None:
    template = CHATML.replace("<|im_start|>", "<extra>")
    found = examine(patient(tmp_path, student=with_tokens(["<extra>"], template)))
    (finding,) = [f for f in found if f.check == "teacher determinism"]
    assert finding.verdict is Verdict.FAIL
    assert "embeddings" in finding.evidence


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "loss").glob("*.yaml")))
def test_every_loss_is_at_its_own_teacher_what_theory_says(name: str, tmp_path: Path) -> None:
    loss = instantiate(compose("train", TrainConfig, [f"loss={name}", "task=sums", "rollout.group_size=2"]).loss)
    one = patient(tmp_path, loss=loss, temperature=0.8)
    (finding,) = check_identical(one)
    assert finding.verdict is (Verdict.WARN if name == "topk_truncated" else Verdict.PASS), finding
    assert finding.evidence.endswith("theory says 0") == (at_the_teacher(loss) == "")
    if at_the_teacher(loss) and name != "sampled_token_reward":  # there the group has no reward to differ by
        assert own_loss(one)[1] > 1e-3
    assert all(p.grad is None for p in one.student.parameters())
    if isinstance(loss, SampledToken):
        assert loss.running.new_count == 0


def test_truncation_warns_and_is_repaired(tmp_path: Path) -> None:
    one = patient(tmp_path, loss=SupportMatching(k=8, outside="ignore"))
    (finding,) = check_identical(one)
    assert (finding.verdict, finding.repair) == (Verdict.WARN, "loss.outside=renormalise")
    assert "theory says not 0: outside=ignore" in finding.evidence
    loss = instantiate(pasted(finding)["loss"])
    assert check_identical(replace(one, loss=loss))[0].verdict is Verdict.PASS
    assert at_the_teacher(ImportanceWeighted(loss=SupportMatching(outside="ignore")))
    assert at_the_teacher(SampledToken(policy="top_p"))
    assert at_the_teacher(SampledToken(reward_weight=1.0))


def test_a_loss_that_is_not_0_against_theory_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SupportMatching, "__call__", lambda self, scores, batch: scores.student_logits.mean(1))
    (finding,) = check_identical(patient(tmp_path))
    assert finding.verdict is Verdict.FAIL
    assert "theory says 0" in finding.evidence


def test_a_gradient_against_theory_fails_although_the_value_is_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "at_the_teacher", lambda loss: "")
    (finding,) = check_identical(patient(tmp_path, loss=SupportMatching(k=8, outside="ignore")))
    assert finding.verdict is Verdict.FAIL
    assert finding.evidence.startswith("loss 0.0e+00 nats")


def wrote(one: Patient, text: str, end: bool = True) -> Any:
    """A play in which the student always writes `text`."""
    tokenizer = one.student.tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * end

    def play(_: Patient, task: str) -> list[Trajectory]:
        turn = Turn(
            prompt_ids=tokenizer("go", add_special_tokens=False)["input_ids"],
            completion_ids=ids,
            sampled_logprobs=[0.0] * len(ids),
            finish_reason="stop" if end else "length",
            policy_version=0,
            reward=0.0,
        )
        return [Trajectory(task=task, group=i, seed=i, turns=[turn], reward=0, status=Status.FAILURE) for i in range(3)]

    return play


class Opinionated(Teacher):
    """Log q is −0.1 for every token, and another value for some."""

    def __init__(self, model: str, others: dict[int, float]) -> None:
        super().__init__(model)
        self.others = others

    def score(self, batch: TokenBatch, request: ScoreRequest) -> TeacherScores:
        return TeacherScores(sampled=torch.tensor([self.others.get(t, -0.1) for t in batch.target_ids.tolist()]))


def judged(
    folder: Path, others: dict[str, float], text: str = "go to north", *, end: bool = True, **changes: Any
) -> Finding:
    one = patient(folder, **changes)
    vocabulary = one.student.tokenizer.get_vocab()
    teacher = Opinionated(str(folder / "teacher"), {vocabulary[t]: x for t, x in others.items()})
    one = replace(one, teachers={"errand": teacher})
    (pair,) = one.pairs
    (finding,) = check_answers(one, pair, wrote(one, text, end))
    return finding


def test_answers_that_the_teacher_would_give_pass(tmp_path: Path) -> None:
    finding = judged(tmp_path, {})
    assert finding.verdict is Verdict.PASS
    assert finding.evidence.startswith("mean log q -0.10 nats a token over ")
    assert "0 of 3 were cut" in finding.evidence


def test_a_refused_end_is_named_and_masked(tmp_path: Path) -> None:
    finding = judged(tmp_path, {"<|im_end|>": -9.0})
    assert finding.verdict is Verdict.WARN
    assert "worst tokens: '<|im_end|>' -9.0 (3×)" in finding.evidence
    assert finding.repair == """mask.tokens='["<|im_end|>"]'"""
    mask = SpecialTokenMask(tokens=["<|im_end|>"]).resolve(tiny_tokenizer())
    assert judged(tmp_path / "again", {"<|im_end|>": -9.0}, mask=mask).verdict is Verdict.PASS


def test_another_way_of_speaking_is_not_masked(tmp_path: Path) -> None:
    finding = judged(tmp_path, {"go": -8.0, "<|im_end|>": -6.0}, "go to north, then take the red key")
    assert finding.verdict is Verdict.WARN
    assert "'go' '<|im_end|>'" in finding.evidence
    assert "python -m opdlight.sft task=errand" in finding.repair


def test_answers_that_never_end_warn(tmp_path: Path) -> None:
    finding = judged(tmp_path, {}, end=False)
    assert (finding.verdict, finding.repair) == (Verdict.WARN, "task.tasks.errand.turn_tokens=24")
    assert "3 of 3 were cut" in finding.evidence


def test_a_teacher_of_something_else_fails(tmp_path: Path) -> None:
    one = patient(tmp_path)
    everything = dict.fromkeys(one.student.tokenizer.get_vocab(), -5.5)
    assert judged(tmp_path / "b", everything).verdict is Verdict.FAIL
    nothing = judged(tmp_path / "c", {}, mask=SpecialTokenMask(tokens=list(range(400)), occurrence="every"))
    assert (nothing.verdict, nothing.repair) == (Verdict.FAIL, "mask.tokens=[]")


def test_greedy_first_turns_are_the_students(tmp_path: Path) -> None:
    one = patient(tmp_path)
    trajectories = first_turns(one, "errand")
    assert len(trajectories) == 4
    for trajectory in trajectories:
        (turn,) = trajectory.turns
        assert 1 <= len(turn.completion_ids) <= 12
        ids = turn.prompt_ids
        for token in turn.completion_ids:  # the slow reference
            assert int(one.student.model(torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids = [*ids, token]
        assert (turn.finish_reason == "stop") == (turn.completion_ids[-1] == 2)
    same = examined(check_answers, one)  # a random model is its own teacher: its greedy tokens are its most probable
    assert same.verdict is not Verdict.FAIL


def test_precision_says_what_a_step_can_move_and_who_computes_in_what(tmp_path: Path) -> None:
    one = patient(tmp_path)
    (fine,) = check_precision(replace(one, learning_rate=2e-6))
    assert (fine.verdict, fine.evidence) == (
        Verdict.PASS,
        "what is trained is float32; the student computes in float32",
    )
    coarse = replace(one, student=Student(str(tmp_path / "student"), dtype="bfloat16"), dtype="bfloat16")
    (hopeless,) = check_precision(replace(coarse, learning_rate=2e-6))
    assert (hopeless.verdict, hopeless.repair) == (Verdict.FAIL, "model.dtype=float32")
    assert "the learning rate 2e-06 can move 0." in hopeless.evidence
    assert pasted(hopeless)["cfg"].model.dtype == "float32"
    (partly,) = check_precision(replace(coarse, learning_rate=1e-2))
    assert (partly.verdict, partly.repair) == (Verdict.WARN, "model.dtype=float32")
    (unknown,) = check_precision(replace(coarse, learning_rate=2e-6, optimizer="torch.optim.SGD"))
    assert unknown.verdict is Verdict.WARN  # its steps are as large as the gradient
    lora = Student(str(tmp_path / "student"), dtype="bfloat16", lora={"r": 2})
    for node in ({"dtype": "bfloat16"}, {"engine": {"dtype": "bfloat16"}}):
        (right,) = check_precision(replace(one, student=lora, compute_dtype="bfloat16", engine=node))
        assert right.verdict is Verdict.PASS
        assert right.evidence == "what is trained is float32; the student computes in bfloat16, the engine in bfloat16"


def test_a_healthy_patient_passes_everything(tmp_path: Path) -> None:
    found = examine(patient(tmp_path))
    assert worst(found) is Verdict.PASS, found
    assert len({f.check for f in found}) == len(found) == 11


def test_overrides_survive_shell_and_hydra() -> None:
    tokens = ["<think>", "a'b", 'say "x"', "back\\slash", "${seed}", "a,b]", "</s>\n", 7, [1, "<"]]
    line = override("mask.tokens", tokens)
    cfg = compose("train", TrainConfig, ["task=sums", *shlex.split(line)])
    assert list(cfg.mask.tokens) == tokens
    with pytest.raises(ConfigError):
        compose("train", TrainConfig, ["task=sums", "mask.tokens=[a'b]"])
