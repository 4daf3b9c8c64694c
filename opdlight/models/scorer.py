"""③ What student and teachers say about a micro-batch: the one place that asks both."""

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from opdlight.batch.split import at_positions
from opdlight.losses import Loss, Needs
from opdlight.models.base import BatchScorer, ScoreRequest
from opdlight.models.in_chunks import sum_in_chunks
from opdlight.models.lm_head import CHUNK, LMHead, log_normaliser, support_values, token_logprobs
from opdlight.models.one_pass import OwnScores, one_pass
from opdlight.models.probe import ProbeResult, probe_result
from opdlight.models.student import Student
from opdlight.system.timer import Timer
from opdlight.types import SupportScores, TeacherScores, TokenBatch


class Scored(NamedTuple):
    """What was found about a micro-batch."""

    scores: SupportScores  # for the loss, with the student's graph
    probe: ProbeResult | None  # for the callbacks, detached; None if the request probes nothing


@dataclass(frozen=True, slots=True)
class ChunkedScores:
    """Scores of which a loss sees a few positions at a time, for a loss on the full vocabulary: [N, V] do not fit.

    Args:
        hidden: [N, d] the student's, with gradient.
        head: the student's.
        batch: with N loss positions.
        request: what was asked.
        teacher: with a support that is made when it is asked for.
    """

    hidden: Tensor
    head: LMHead
    batch: TokenBatch
    request: ScoreRequest
    teacher: TeacherScores

    def token_sum(self, loss: Loss) -> Tensor:
        """Σ_t ℓ_t [] of a loss without `needs.whole_trajectories`, with gradient; once."""
        request, teacher, batch = self.request, self.teacher, self.batch

        def each(hidden: Tensor, head: LMHead, at: Tensor) -> Tensor:
            scores = student_scores(hidden, head, batch.target_ids[at], request, teacher.at(at))
            return loss(scores, at_positions(batch, at))

        return sum_in_chunks(each, self.hidden, self.head, CHUNK)


class ScoredLater(NamedTuple):
    """As `Scored`, for a loss that is compared a few positions at a time."""

    scores: ChunkedScores
    probe: ProbeResult | None


class _Asked(NamedTuple):
    request: ScoreRequest  # with the student's part
    teacher: TeacherScores  # and the reference's
    own: OwnScores | None  # the student's, where it is probed


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Asks the student, then the teachers, then the student again.

    The student's hidden states come first, since it may choose the support; then each teacher scores its rows; then the
    student is scored on the support.

    Args:
        student: may be training.
        teachers: frozen.
        reference: the student as it was at the start, for losses with `needs.reference`.
        timer: what is done for the callbacks' sake is timed as `watch`.
    """

    student: Student
    teachers: BatchScorer
    reference: BatchScorer | None = None
    timer: Timer = field(default_factory=Timer)

    def score(self, batch: TokenBatch, request: ScoreRequest, *, hidden: Tensor | None = None) -> Scored:
        """Exactly the scores that `request` asks for.

        Args:
            batch: with N loss positions.
            request: without the student's part.
            hidden: the student's hidden states [N, d], if they are known already; the gradient ends there.
        """
        hidden = self.student.hidden(batch) if hidden is None else hidden
        head = self.student.head()
        asked = self._ask(batch, request, hidden, head)
        scores = student_scores(hidden, head, batch.target_ids, asked.request, asked.teacher)
        return Scored(scores, self._probe(batch, asked, hidden, head))

    def score_later(self, batch: TokenBatch, request: ScoreRequest) -> ScoredLater:
        """What `score` would find, to be compared a few positions at a time."""
        hidden, head = self.student.hidden(batch), self.student.head()
        asked = self._ask(batch, replace(request, support_later=True), hidden, head)
        probe = self._probe(batch, asked, hidden, head)
        return ScoredLater(ChunkedScores(hidden, head, batch, asked.request, asked.teacher), probe)

    def _ask(self, batch: TokenBatch, request: ScoreRequest, hidden: Tensor, head: LMHead) -> _Asked:
        """What student, teachers and reference say that does not depend on the loss."""
        with nullcontext() if request.needs.chosen_by == "student" else self.timer("watch"):
            request, own = with_student(hidden, head, batch.target_ids, request)
        teacher = self.teachers.score(batch, request)
        if request.needs.reference:
            assert self.reference is not None
            start = ScoreRequest(needs=Needs(sampled=True), shared=request.shared, temperature=request.temperature)
            teacher = replace(teacher, reference=self.reference.score(batch, start).sampled)
        return _Asked(request, teacher, own)

    def _probe(self, batch: TokenBatch, asked: _Asked, hidden: Tensor, head: LMHead) -> ProbeResult | None:
        if asked.teacher.probe is None or asked.own is None:
            return None
        with self.timer("watch"):
            return probe_result(batch, asked.request, asked.own, asked.teacher.probe, hidden.detach(), head)

    @torch.no_grad()
    def student_logprobs(self, batch: TokenBatch, request: ScoreRequest) -> Tensor:
        """Log π(y) [N] of the student as it is now, detached; no teacher is asked."""
        return _sampled(self.student.hidden(batch), self.student.head(), batch.target_ids, request)


def in_chunks(request: ScoreRequest, num_tokens: int) -> bool:
    """Whether to score so many loss positions later, a few at a time, because all logits would not fit."""
    return request.full_vocabulary and not request.needs.whole_trajectories and num_tokens > CHUNK


def with_student(
    hidden: Tensor, head: LMHead, target_ids: Tensor, request: ScoreRequest
) -> tuple[ScoreRequest, OwnScores | None]:
    """The request with the student's part, and what it says at the probed positions; from one pass over the vocabulary.

    Its part is the top-K of the shared ids: [N, K] if the loss compares there, and [n, K] at the probed positions.
    """
    at = None if request.probe_at is None else request.probe_at.to(hidden.device)
    found = one_pass(
        hidden,
        head,
        target_ids,
        shared=request.shared,
        temperature=request.temperature,
        k=request.needs.k if request.needs.chosen_by == "student" else 0,
        probe_at=at,
        probe_k=min(request.probe_k, len(request.shared)),
    )
    probed = None if found.probe is None else found.probe.top_ids
    return replace(request, student_ids=found.top_ids, probe_at=at, probe_student_ids=probed), found.probe


def student_scores(
    hidden: Tensor, head: LMHead, target_ids: Tensor, request: ScoreRequest, teacher: TeacherScores
) -> SupportScores:
    """What a loss may look at, with gradients to the student's hidden states [N, d] and its head.

    Args:
        hidden: [N, d].
        head: the student's.
        target_ids: [N] the sampled tokens.
        request: names what is computed.
        teacher: scores of the same positions; its support says where the student's logits are taken.
    """
    needs, temperature, support = request.needs, request.temperature, teacher.support
    sampled = _sampled(hidden, head, target_ids, request) if needs.sampled else None
    logits = None
    if support is not None:
        logits = support_values(hidden, head, support.token_ids, temperature, full_vocabulary=request.full_vocabulary)
    return SupportScores(
        support=support,
        student_logits=logits,
        student_normaliser=log_normaliser(hidden, head, temperature) if needs.normaliser else None,
        student_sampled=sampled,
        teacher_sampled=teacher.sampled,
        teacher_entropy=teacher.entropy,
        reference_sampled=teacher.reference,
    )


def _sampled(hidden: Tensor, head: LMHead, target_ids: Tensor, request: ScoreRequest) -> Tensor:
    top_p = request.top_p if request.needs.top_p else 1.0
    return token_logprobs(hidden, head, target_ids, request.temperature, top_p=top_p)
