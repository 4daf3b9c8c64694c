"""Losses that differentiate an estimate of the KL at the sampled token."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from opdlight.losses.base import Needs
from opdlight.types import SupportScores, TokenBatch


def k1(log_pi: Tensor, log_q: Tensor) -> Tensor:
    """Log π(y)/q(y): unbiased for KL(student‖teacher) over y ~ π, often negative (joschu.net/blog/kl-approx)."""
    return log_pi - log_q


def k2(log_pi: Tensor, log_q: Tensor) -> Tensor:
    """½ (log π(y)/q(y))²: biased, never negative."""
    return 0.5 * (log_pi - log_q) ** 2


def k3(log_pi: Tensor, log_q: Tensor) -> Tensor:
    """q(y)/π(y) − 1 − log q(y)/π(y): unbiased and never negative, heavy-tailed where q > π."""
    return torch.expm1(log_q - log_pi) + (log_pi - log_q)


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectEstimate:
    """ℓ = k2 or k3 of the sampled token, differentiated as it stands.

    Over y ~ π the gradient of k2 averages to that of KL(student‖teacher) and equals `SampledToken` at γ = 0; that of k3
    averages to the gradient of KL(teacher‖student), whatever the value estimates; that of k1 averages to 0.

    Raises:
        ValueError: for k1.
    """

    estimate: Literal["k1", "k2", "k3"] = "k2"

    def __post_init__(self) -> None:
        if self.estimate == "k1":
            raise ValueError(
                "Expected `loss.estimate` to be 'k2' or 'k3', but got 'k1': its gradient is ∇log π(y), which averages "
                "to 0 and has no teacher in it. Use loss=sampled_token, the policy gradient on k1."
            )

    @property
    def needs(self) -> Needs:
        """The sampled token's log-probs of both models."""
        return Needs(sampled=True, whole_trajectories=False)

    def __call__(self, scores: SupportScores, batch: TokenBatch) -> Tensor:
        """ℓ [N] in nats; the gradient goes through the student's log-prob alone."""
        assert scores.student_sampled is not None
        assert scores.teacher_sampled is not None
        return {"k2": k2, "k3": k3}[self.estimate](scores.student_sampled, scores.teacher_sampled)
