"""Policy gradient on the sampled token: the baseline that local support matching is compared with."""

from dataclasses import dataclass

import torch
from torch import Tensor

from opdlight.losses.base import Needs
from opdlight.types import SupportScores, TokenBatch


def discounted_to_go(values: Tensor, trajectory: Tensor, position: Tensor, gamma: float) -> Tensor:
    """R_t = Σ_{t'≥t} γ^{t'−t} r_{t'} along each trajectory, in any order of the entries.

    Args:
        values: r [N].
        trajectory: [N] entries with the same number belong together.
        position: t [N], distinct within a trajectory; gaps (tokens left out of the loss) keep their distance.
        gamma: discount in [0, 1]; 0 returns `values`.

    Source: PAPER Eq. 1–3 and the discounted estimator ĝ_γ.

    >>> r, same, t = torch.tensor([1.0, 2.0, 4.0]), torch.zeros(3), torch.arange(3)
    >>> discounted_to_go(r, same, t, 0.5).tolist()
    [3.0, 4.0, 4.0]
    """
    order = torch.argsort(position, stable=True)
    order = order[torch.argsort(trajectory[order], stable=True)]
    to_go, trajectory, position = values[order], trajectory[order], position[order]
    reach = 1  # to_go[t] covers the window [t, t + reach); each round doubles it: log₂ N rounds instead of N steps
    while reach < len(to_go):
        same = trajectory[:-reach] == trajectory[reach:]
        distance = (position[reach:] - position[:-reach]).clamp(min=0).to(to_go.dtype)
        step = torch.where(same, gamma**distance * to_go[reach:], 0.0)
        to_go = torch.cat([to_go[:-reach] + step, to_go[-reach:]])
        reach *= 2
    return torch.empty_like(to_go).index_copy_(0, order, to_go)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledToken:
    """Reinforce on r = log π(y) − log q(y), discounted by `gamma` along the trajectory (PAPER Eq. 1–3).

    Gradient: sg(R_t) ∇log π(y_t) with R_t = Σ_{t'≥t} γ^{t'−t} r_{t'}, over all turns of the trajectory.
    Value: r_t, whose mean estimates KL(student‖teacher) per token on the student's rollouts (the k1 estimate): it can
    be compared with other losses, goes to 0, and is negative only by chance. R_t · log π(y_t) has the same gradient and
    no meaning. γ = 0 is the token-level estimator (biased, low variance), γ = 1 the sequence-level one (unbiased).
    """

    gamma: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"Expected `loss.gamma` to be a number in [0, 1], but got {self.gamma!r}.")

    @property
    def needs(self) -> Needs:
        """The sampled token's log-probs of both models."""
        return Needs(sampled=True)

    def __call__(self, scores: SupportScores, batch: TokenBatch) -> Tensor:
        """r_t [N], with the gradient R_t ∇log π(y_t)."""
        assert scores.student_sampled is not None
        assert scores.teacher_sampled is not None
        log_pi = scores.student_sampled
        ratio = (log_pi - scores.teacher_sampled).detach()
        to_go = discounted_to_go(ratio, batch.trajectory_index, batch.token_position, self.gamma)
        return ratio + to_go * (log_pi - log_pi.detach())
