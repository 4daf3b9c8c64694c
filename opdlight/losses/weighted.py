"""Losses made of others: an entropy gate, weights by turn, importance weights."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from opdlight.bounds import Bounds, NonNegativeFloat, PositiveInt
from opdlight.losses.base import Loss, Needs, Remembers, Shared, SupportKind, alone
from opdlight.losses.outside import absolute, renormalised
from opdlight.losses.sampled import SampledToken
from opdlight.types import SupportScores, TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyAware:
    """ℓ = sampled-token reverse KL + α · 1[H(q) ≥ τ] · Σ_S q̂ log(q̂/π): forward KL where the teacher is undecided.

    S is the teacher's top-K with the teacher renormalised on it and the student of the full vocabulary; H is the
    teacher's entropy over the full vocabulary in nats (arXiv 2603.07079; constants as in its public code).

    Args:
        k: size of S.
        threshold: τ in nats.
        weight: α of the forward KL.
    """

    k: PositiveInt = 16
    threshold: NonNegativeFloat = 0.8
    weight: NonNegativeFloat = 1.0
    sampled: SampledToken = field(default_factory=SampledToken, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"Expected `loss.k` to be at least 1, but got {self.k!r}.")
        for name, value in (("threshold", self.threshold), ("weight", self.weight)):
            if not value >= 0:
                raise ValueError(f"Expected `loss.{name}` to be a number ≥ 0, but got {value!r}.")

    @property
    def needs(self) -> Needs:
        """Sampled token, teacher's top-K, normaliser and the teacher's entropy."""
        return replace(
            self.sampled.needs, support=SupportKind.TEACHER_TOP_K, k=self.k, normaliser=True, teacher_entropy=True
        )

    def __call__(self, scores: SupportScores, batch: TokenBatch) -> Tensor:
        """ℓ [N] in nats."""
        support, logits, normaliser = scores.support, scores.student_logits, scores.student_normaliser
        assert support is not None
        assert logits is not None
        assert normaliser is not None
        assert scores.teacher_entropy is not None
        log_pi = absolute(logits - normaliser.unsqueeze(1), support.valid)
        log_q = renormalised(support.teacher_logits.to(log_pi.dtype), support.valid)
        cover = (log_q.exp() * (log_q - log_pi)).sum(-1)  # π does not add up to 1 on S: no divergence of distributions
        gate = (scores.teacher_entropy >= self.threshold).to(cover.dtype)
        return self.sampled(scores, batch) + self.weight * gate * cover


class _Around:
    """A loss around another one, whose state it passes on."""

    loss: Loss

    def end_update(self, shared: Shared = alone) -> None:
        """Tell the loss inside that an update has ended."""
        if isinstance(self.loss, Remembers):
            self.loss.end_update(shared)

    def state_dict(self) -> dict[str, Any]:
        """The state of the loss inside; empty if it has none."""
        return self.loss.state_dict() if isinstance(self.loss, Remembers) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if isinstance(self.loss, Remembers):
            self.loss.load_state_dict(state)


@dataclass(frozen=True, kw_only=True)
class TurnWeighted(_Around):
    """w_k ℓ_t for the tokens of turn k: turns in which the student has drifted from the teacher weigh less.

    d_k = mean |log π(y) − log q(y)| over the loss tokens of turn k, w_k = min((d_1 + ε)/(d_k + ε), 1 + δ), w_1 = 1, all
    detached (arXiv 2605.07725 Eq. 6–7, its product written out). Turn 1 is the first that has loss tokens.

    Args:
        loss: ℓ, any other loss.
        limit: δ, how much more than the first turn a later one may weigh.
    """

    loss: Loss
    limit: NonNegativeFloat = 0.2

    def __post_init__(self) -> None:
        if not self.limit >= 0:
            raise ValueError(f"Expected `loss.limit` to be a number ≥ 0, but got {self.limit!r}.")

    @property
    def needs(self) -> Needs:
        """What ℓ needs, the sampled token's log-probs, and the first turn of a trajectory beside its others."""
        return replace(self.loss.needs, sampled=True, whole_trajectories=True)

    def __call__(self, scores: SupportScores, batch: TokenBatch) -> Tensor:
        """W ℓ [N] in nats; W is detached."""
        assert scores.student_sampled is not None
        assert scores.teacher_sampled is not None
        gap = (scores.student_sampled - scores.teacher_sampled).detach().abs()
        return turn_weights(gap, batch.trajectory_index, batch.turn_index, self.limit) * self.loss(scores, batch)


def turn_weights(gap: Tensor, trajectory: Tensor, turn: Tensor, limit: float) -> Tensor:
    """W [N] of `TurnWeighted` from |log π(y) − log q(y)| [N], trajectory [N] and turn [N].

    >>> gap, same = torch.tensor([1.0, 3.0, 4.0, 1.0]), torch.zeros(4, dtype=torch.long)
    >>> turn_weights(gap, same, torch.tensor([0, 0, 1, 2]), 0.2).round(decimals=3).tolist()
    [1.0, 1.0, 0.5, 1.2000000476837158]
    """
    if not len(gap):
        return gap
    epsilon = 1e-6
    pairs = torch.stack([trajectory, turn], 1)
    groups, group = torch.unique(pairs, dim=0, return_inverse=True)  # sorted: a trajectory's first turn comes first
    sums = gap.new_zeros(len(groups)).index_add_(0, group, gap)
    drift = sums / torch.bincount(group, minlength=len(groups)).to(gap.dtype)
    first = torch.searchsorted(groups[:, 0].contiguous(), groups[:, 0].contiguous())
    return ((drift[first] + epsilon) / (drift + epsilon)).clamp(max=1 + limit)[group]


@dataclass(frozen=True, kw_only=True)
class ImportanceWeighted(_Around):
    """min(π(y)/μ(y), C) ℓ_t: truncated importance weights against what the engine's policy μ was, token by token.

    μ is the engine's own log-prob of its token (full distribution, temperature 1), π the trainer's, so the weight
    corrects for a stale engine or one that computes differently; it is detached. What top-p cut away is not corrected.

    Args:
        loss: ℓ, any other loss.
        cap: C, the largest weight.
    """

    loss: Loss
    cap: Annotated[float, Bounds(at_least=1)] = 2.0

    def __post_init__(self) -> None:
        if not self.cap >= 1:
            raise ValueError(f"Expected `loss.cap` to be at least 1, but got {self.cap!r}.")
        if self.loss.needs.top_p:
            raise ValueError(
                "Expected `loss.loss.policy` to be 'full' inside importance weights, but got 'top_p': the engine "
                "reports log-probs of the full distribution."
            )

    @property
    def needs(self) -> Needs:
        """What ℓ needs, the sampled token's log-probs, and the engine's at temperature 1."""
        return replace(self.loss.needs, sampled=True, engine_logprobs=True)

    def __call__(self, scores: SupportScores, batch: TokenBatch) -> Tensor:
        """W ℓ [N] in nats; W is detached."""
        assert scores.student_sampled is not None
        weight = (scores.student_sampled.detach() - batch.sampled_logprobs).exp().clamp(max=self.cap)
        return weight * self.loss(scores, batch)
