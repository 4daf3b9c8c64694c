"""What both models say at some loss positions of a micro-batch, for the callbacks."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from opdlight.bounds import PositiveInt
from opdlight.losses.divergences import reverse_kl
from opdlight.metrics.tokens import overlap, subsample
from opdlight.models.base import ScoreRequest
from opdlight.models.lm_head import LMHead
from opdlight.models.one_pass import OwnScores, logprobs_at
from opdlight.types import ProbeScores, TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What student and teacher say at n loss positions, detached; log-probs in nats, at the rollout temperature.

    A training step of one's own makes one for each micro-batch (`Scorer.score` does, or by hand) and returns them in
    `distillation.step.Step.probes`, beside the loss.
    """

    tasks: tuple[str, ...]
    loss_tokens: int  # loss positions of the micro-batch, probed or not
    global_tokens: int  # and of the whole update
    task: Tensor  # [n] index into `tasks`
    turn: Tensor  # [n] from 0
    position: Tensor  # [n] tokens that the student had produced before, over the whole trajectory
    token: Tensor  # [n] the student's token y
    engine: Tensor  # [n] log μ(y) that the engine reported: full distribution, temperature 1
    trainer: Tensor  # [n] log π(y), full distribution, temperature 1
    student: Tensor  # [n] log π(y)
    teacher: Tensor  # [n] log q(y)
    student_entropy: Tensor  # [n]
    teacher_entropy: Tensor | None  # [n]; None if the teacher does not tell
    teacher_ids: Tensor  # [n, K] the teacher's top-K, best first
    teacher_top: Tensor  # [n, K] log q of these
    student_at_teacher: Tensor  # [n, K] log π of these
    student_ids: Tensor  # [n, K] the student's top-K
    student_top: Tensor  # [n, K] log π of these
    teacher_at_student: Tensor  # [n, K] log q of these; NaN where the teacher does not tell

    @property
    def gap(self) -> Tensor:
        """Log π(y) − log q(y) [n]: above 0 where the teacher likes the token less; the reward is −gap."""
        return self.student - self.teacher

    @property
    def divergence(self) -> Tensor:
        """KL(π̂‖q̂) [n], both renormalised on the teacher's top-K: the loss of local support matching (paper Eq. 8)."""
        return reverse_kl(self.student_at_teacher.log_softmax(-1), self.teacher_top.log_softmax(-1))

    @property
    def teacher_mass(self) -> Tensor:
        """Σ_S q(v) [n] on the teacher's top-K S."""
        return self.teacher_top.exp().sum(-1)

    @property
    def student_mass(self) -> Tensor:
        """Σ_S π(v) [n]: the rest is what a renormalised loss does not see."""
        return self.student_at_teacher.exp().sum(-1)

    @property
    def sampled_in_support(self) -> Tensor:
        """1 where y ∈ S [n]."""
        return (self.teacher_ids == self.token.unsqueeze(1)).any(-1).float()

    @property
    def overlap(self) -> Tensor:
        """Share of ids that both top-K sets have [n]."""
        return overlap(self.student_ids, self.teacher_ids)

    def where(self, mask: Tensor) -> Self:
        """The positions of a mask [n]."""
        if bool(mask.all()):
            return self
        chosen: dict[str, Any] = {
            f.name: v[mask] for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, **chosen)

    def cpu(self) -> Self:
        """The same on the CPU, to keep and to send."""
        moved: dict[str, Any] = {
            f.name: v.cpu() for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    @classmethod
    def join(cls, parts: Sequence["ProbeResult"]) -> "ProbeResult":
        """All positions of several micro-batches of one update; `loss_tokens` add up."""
        first = parts[0]
        columns: dict[str, Any] = {}
        for field in fields(cls):
            values = [getattr(p, field.name) for p in parts]
            columns[field.name] = torch.cat(values) if isinstance(values[0], Tensor) else values[0]
        columns["loss_tokens"] = sum(p.loss_tokens for p in parts)
        return cls(**columns) if len(parts) > 1 else first


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """At which loss positions both models are probed for the callbacks, and how wide.

    Args:
        every: in each `every`-th update.
        positions: random loss positions a micro-batch at most.
        k: size of the top-K sets.
    """

    every: PositiveInt = 1
    positions: PositiveInt = 256
    k: PositiveInt = 32

    def choose(self, num_tokens: int, update: int) -> Tensor | None:
        """Some of `num_tokens` loss positions, ascending and the same in every run; None in an update without probe."""
        if update % self.every or not num_tokens:
            return None
        return subsample(num_tokens, self.positions, torch.Generator().manual_seed(update))


@torch.no_grad()
def probe_result(
    batch: TokenBatch, request: ScoreRequest, own: OwnScores, teacher: ProbeScores, hidden: Tensor, head: LMHead
) -> ProbeResult:
    """Put together what the teacher said and what the student says at the same positions.

    Args:
        batch: with N loss positions.
        request: with the student's part.
        own: the student's scores at `request.probe_at`.
        teacher: the teacher's there.
        hidden: the student's hidden states [N, d].
        head: the student's.
    """
    at = request.probe_at
    assert at is not None
    return ProbeResult(
        tasks=batch.tasks,
        loss_tokens=batch.num_tokens,
        global_tokens=batch.global_tokens,
        task=batch.task_index[at],
        turn=batch.turn_index[at],
        position=batch.token_position[at],
        token=batch.target_ids[at],
        engine=batch.sampled_logprobs[at],
        trainer=own.untempered,
        student=own.sampled,
        teacher=teacher.sampled,
        student_entropy=own.entropy,
        teacher_entropy=teacher.entropy,
        teacher_ids=teacher.top_ids,
        teacher_top=teacher.top_logprobs,
        student_at_teacher=logprobs_at(own, hidden[at], head, teacher.top_ids, request.temperature),
        student_ids=own.top_ids,
        student_top=own.top_logprobs,
        teacher_at_student=teacher.at_other,
    )
