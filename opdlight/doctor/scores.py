"""Numbers that must agree: a teacher with itself, and the loss with theory where student and teacher are one model."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from opdlight.batch.collate import Collate
from opdlight.doctor.findings import Finding, Verdict, override
from opdlight.doctor.patient import Pair, Patient
from opdlight.losses import EntropyAware, ImportanceWeighted, Loss, Needs, SampledToken, SupportMatching, TurnWeighted
from opdlight.models import Scorer, ScoreRequest, Student, TeacherModel
from opdlight.models.lm_head import token_logprobs
from opdlight.models.teacher import teacher_scores
from opdlight.rollout import ChatRenderer
from opdlight.types import SharedVocabulary, Status, TeacherScores, TokenBatch, Trajectory, Turn

ROWS, ROW = 3, 32  # rows that are scored, and tokens of the longest: training does it on the CPU before it starts
POSITIONS = 24  # loss positions of a row
AGAIN = 1e-4  # largest difference in nats between two forwards of the same batch
PADDED = {"float32": 1e-3, "bfloat16": 0.3}  # the same beside other rows: sums run in another order
ZERO = {"float32": 1e-3, "bfloat16": 5e-2}  # a gradient below this share of that of log π(y) counts as 0
FLOAT32 = f"{override('model.dtype', 'float32')} {override('model.compute_dtype', 'float32')}"
SMALL_LOSS = {"float32": 1e-4, "bfloat16": 1e-2}  # nats


def real_rows(patient: Patient, tasks: Sequence[str]) -> list[list[int]]:
    """Rows of different lengths, cut from the tasks' real prompts."""
    renderer = ChatRenderer(patient.student.tokenizer, patient.student.chat_template)
    openings = [opening for task in tasks for opening in patient.openings(task)]
    prompts = [renderer.start(o.system_prompt, o.observation).prompt_ids for o in openings[:ROWS]]
    return [ids[: max(4, min(len(ids), ROW) * (i + 1) // len(prompts))] for i, ids in enumerate(prompts)]


def as_batches(rows: Sequence[list[int]], *, shared: SharedVocabulary, micro_batch_tokens: int) -> list[TokenBatch]:
    """Rows of ids as micro-batches; the second half of each row carries loss, `POSITIONS` positions at most."""
    trajectories = []
    for ids in rows:
        half = max(1, len(ids) // 2)
        answer = ids[half : half + POSITIONS]
        turn = Turn(
            prompt_ids=ids[:half],
            completion_ids=answer,
            sampled_logprobs=[0.0] * len(answer),
            finish_reason="length",
            policy_version=0,
            reward=0.0,
        )
        trajectories.append(
            Trajectory(task="", group=0, seed=0, turns=[turn], reward=0.0, status=Status.TRUNCATED_TOKENS)
        )
    collate = Collate(tasks=("",), shared=shared, micro_batch_tokens=micro_batch_tokens)
    return collate(trajectories)


def sampled(teacher: TeacherModel, batch: TokenBatch, shared: SharedVocabulary) -> Tensor:
    """Log q(y) [N] at temperature 1.

    Raises:
        ValueError: if the batch holds ids that the teacher has no embedding for (a GPU would not survive it).
    """
    largest, width = int(batch.input_ids.max()), teacher.width
    if largest >= width:
        raise ValueError(f"a row holds the id {largest}, but the teacher has {width} embeddings")
    request = ScoreRequest(needs=Needs(sampled=True), shared=shared)
    found = teacher.score(batch.to(teacher.device), request).sampled
    assert found is not None
    return found.float().cpu()


def check_determinism(patient: Patient, pair: Pair) -> list[Finding]:
    """The teacher's log-probs of the same rows: twice, and each row alone instead of padded beside others."""
    rows = real_rows(patient, pair.tasks)
    (together,) = as_batches(rows, shared=pair.shared, micro_batch_tokens=1 << 30)
    alone = as_batches(rows, shared=pair.shared, micro_batch_tokens=1)
    first, again = (sampled(pair.teacher, together, pair.shared) for _ in range(2))
    single = torch.cat([sampled(pair.teacher, batch, pair.shared) for batch in alone])
    twice, padded = float((first - again).abs().max()), float((first - single).abs().max())
    evidence = (
        f"{len(first)} log-probs in {len(rows)} rows: the same batch twice differs by up to {twice:.1e} nats, "
        f"one row at a time by {padded:.1e}"
    )
    verdict, repair = Verdict.PASS, ""
    if not twice <= AGAIN:
        verdict = Verdict.FAIL
        evidence += ": the teacher draws random numbers (dropout?)"
        repair = f"{pair.key}=<a model that answers the same twice>"
    elif not padded <= PADDED[patient.compute_dtype]:
        verdict = Verdict.FAIL if padded > 10 * PADDED[patient.compute_dtype] else Verdict.WARN
        evidence += ": the answer depends on what stands beside a row"
        repair = FLOAT32 if patient.compute_dtype != "float32" else f"{pair.key}=<another model>"
    return [Finding(check="teacher determinism", about=pair.name, verdict=verdict, evidence=evidence, repair=repair)]


@dataclass(frozen=True, slots=True)
class StudentAsTeacher:
    """The student's own weights in the teachers' place. A `BatchScorer`."""

    student: Student

    @torch.no_grad()
    def score(self, batch: TokenBatch, request: ScoreRequest) -> TeacherScores:
        """As a local teacher with these weights."""
        return teacher_scores(self.student.hidden(batch), self.student.head(), batch.target_ids, request)


def at_the_teacher(loss: Loss) -> str:
    """Why a loss has a value or a gradient where the student is its teacher; empty if theory says both are 0."""
    if isinstance(loss, TurnWeighted | ImportanceWeighted):
        return at_the_teacher(loss.loss)
    if isinstance(loss, EntropyAware):
        return "its forward KL compares q renormalised on S with π of the full vocabulary"
    if isinstance(loss, SampledToken):
        if loss.policy == "top_p":
            return "π is of the nucleus and q of the full vocabulary"
        return "the reward of the environment goes on" if loss.reward_weight else ""
    if isinstance(loss, SupportMatching) and loss.divergence == "reverse_kl":
        if loss.outside == "ignore":
            return "outside=ignore leaves the gradient of Σ_S π, which pushes mass out of S"
        if loss.outside == "sampled_tail":
            return "the gradient of the reverse KL on S is off by that of Σ_S π (EMA-PG)"
    return ""


def check_identical(patient: Patient) -> list[Finding]:
    """Value and gradient of the loss (with respect to the hidden states) when the student is its own teacher."""
    value, gradient = own_loss(patient)
    reason = at_the_teacher(patient.loss)
    measured = f"loss {value:.1e} nats, gradient {gradient:.1e} of that of log π(y)"
    zero = value <= SMALL_LOSS[patient.compute_dtype] and gradient <= ZERO[patient.compute_dtype]

    def found(verdict: Verdict, evidence: str, repair: str = "") -> list[Finding]:
        return [Finding(check="student as its teacher", verdict=verdict, evidence=evidence, repair=repair)]

    if not reason:
        if zero:
            return found(Verdict.PASS, f"{measured}; theory says 0")
        dtype = FLOAT32 if patient.compute_dtype != "float32" else "loss=topk_rkl"
        return found(Verdict.FAIL, f"{measured}; theory says 0, so the two sides are not computed alike", dtype)
    truncated = isinstance(patient.loss, SupportMatching) and patient.loss.outside == "ignore"
    repair = override("loss.outside", "renormalise") if truncated else ""
    evidence = f"{measured}; theory says not 0: {reason}"
    return found(Verdict.WARN if truncated else Verdict.PASS, evidence, repair)


def own_loss(patient: Patient) -> tuple[float, float]:
    """Largest |ℓ| in nats, and ‖∇ mean ℓ‖ over ‖∇ mean log π(y)‖, both with respect to the hidden states [N, d]."""
    student, temperature = patient.student, patient.temperature
    loss = copy.deepcopy(patient.loss)  # some losses remember what they have seen
    rows = real_rows(patient, list(patient.tasks))
    (batch,) = as_batches(rows, shared=patient.shared, micro_batch_tokens=1 << 30)
    batch = batch.to(student.head().weight.device)
    with torch.no_grad():
        hidden = student.hidden(batch)
        own = token_logprobs(hidden, student.head(), batch.target_ids)  # as the engine would report them
    batch = replace(batch, sampled_logprobs=own)
    leaf = hidden.detach().clone().requires_grad_()
    itself = StudentAsTeacher(student)
    request = ScoreRequest(
        needs=patient.loss.needs, shared=patient.shared, temperature=temperature, top_p=patient.top_p
    )
    scorer = Scorer(student=student, teachers=itself, reference=itself)
    each = loss(scorer.score(batch, request, hidden=leaf).scores, batch)
    (gradient,) = torch.autograd.grad(each.mean(), leaf)
    likelihood = token_logprobs(leaf, student.head(), batch.target_ids, temperature)
    (unit,) = torch.autograd.grad(likelihood.mean(), leaf)
    return float(each.detach().abs().max()), float(gradient.norm() / unit.norm())
