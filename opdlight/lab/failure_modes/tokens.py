"""The sampled tokens of trajectories: both models' log-probs, and the norms of the gradients in the logits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from opdlight.batch.collate import Collate
from opdlight.data.requests import held_out
from opdlight.data.tasks import Task
from opdlight.losses import Needs, SupportKind
from opdlight.metrics.tokens import matching_gradient_norm, repeated, sampled_token_gradient_norm
from opdlight.models import Scorer, ScoreRequest, Student, Teachers
from opdlight.rollout import Collector, Sampling
from opdlight.types import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The sampled tokens of one task, [N] each; log-probs are of the full vocabulary at temperature 1."""

    trajectory: Tensor  # number of the trajectory
    turn: Tensor  # from 0
    position: Tensor  # number of student tokens before it in the trajectory
    token: Tensor
    log_pi: Tensor  # student
    log_q: Tensor  # teacher
    sampled_gradient: Tensor  # norm in the student's logits: policy gradient of the sampled token
    matching_gradient: Tensor  # the same of local support matching
    repeats: Tensor  # bool: it ends an n-gram that has occurred before in the trajectory
    listed: Tensor  # bool: the special-token mask removes it

    @property
    def reward(self) -> Tensor:
        """Log q(y) − log π(y) in nats: the reward of sampled-token distillation."""
        return self.log_q - self.log_pi


@torch.no_grad()
def measure(
    student: Student,
    teachers: Teachers,
    trajectories: Sequence[Trajectory],
    *,
    k: int,
    ngram: int,
    loss_mask: Callable[[list[int]], list[bool]],
) -> Tokens:
    """Score every sampled token with both models; for small vocabularies, because all logits of a trajectory are kept.

    Args:
        student: the policy.
        teachers: one for each task.
        trajectories: at least one of them with a sampled token.
        k: size of the teacher's top-K on which support matching compares.
        ngram: n of `Tokens.repeats`.
        loss_mask: completion ids [C] → which of them the special-token mask keeps [C]; see `Tokens.listed`.
    """
    shared = teachers.shared_vocabulary
    request = ScoreRequest(needs=Needs(support=SupportKind.FULL_VOCABULARY, sampled=True), shared=shared)
    scorer = Scorer(student=student, teachers=teachers)
    tasks = tuple(dict.fromkeys(t.task for t in trajectories))
    collate = Collate(tasks=tasks, shared=shared, micro_batch_tokens=1)  # one trajectory a batch
    rows: list[list[Tensor]] = []
    for number, trajectory in enumerate(trajectories):
        completions = [turn.completion_ids for turn in trajectory.turns]
        repeats = torch.tensor([bool(flag) for turn in repeated(completions, ngram) for flag in turn])
        listed = torch.tensor([not flag for ids in completions for flag in loss_mask(ids)])
        for batch in collate([trajectory]):
            scores = scorer.score(batch, request).scores
            assert scores.support is not None
            assert scores.student_logits is not None
            assert scores.student_sampled is not None
            assert scores.teacher_sampled is not None
            best, ids = scores.support.teacher_logits.masked_fill(~scores.support.valid, -torch.inf).topk(k, dim=1)
            rows.append(
                [
                    torch.full_like(batch.target_ids, number),
                    batch.turn_index,
                    batch.token_position,
                    batch.target_ids,
                    scores.student_sampled,
                    scores.teacher_sampled,
                    sampled_token_gradient_norm(
                        scores.student_logits.log_softmax(1), batch.target_ids, scores.teacher_sampled
                    ),
                    matching_gradient_norm(scores.student_logits.gather(1, ids), best),
                    repeats[batch.token_position],
                    listed[batch.token_position],
                ]
            )
    return Tokens(**dict(zip(Tokens.__slots__, (torch.cat(column) for column in zip(*rows, strict=True)), strict=True)))


def roll_out(
    collector: Collector, tasks: Mapping[str, Task], episodes: int, top_p: float, seed: int
) -> dict[str, list[Trajectory]]:
    """Roll out `episodes` held-out episodes per task at temperature 1."""
    sampling = Sampling(temperature=1.0, top_p=top_p)
    requests = {name: held_out(name, replace(task, episodes=episodes, samples=1)) for name, task in tasks.items()}
    return {name: collector.collect(asked, sampling, sampling_seed=seed) for name, asked in requests.items()}
