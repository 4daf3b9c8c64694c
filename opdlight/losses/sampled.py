"""Policy gradient on the sampled token: what local support matching is compared with."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from opdlight.bounds import Bounds, NonNegativeFloat, UnitFloat
from opdlight.losses.base import Needs, Shared, SupportKind, alone
from opdlight.losses.divergences import reverse_kl
from opdlight.losses.outside import renormalised
from opdlight.types import SupportScores, TokenBatch


def discounted_to_go(values: Tensor, trajectory: Tensor, position: Tensor, gamma: float) -> Tensor:
    """R_t = Σ_{t'≥t} γ^{t'−t} r_{t'} along each trajectory, in any order of the entries.

    Args:
        values: r [N].
        trajectory: [N] entries with the same number belong together.
        position: t [N], distinct within a trajectory; gaps (tokens left out of the loss) keep their distance.
        gamma: discount in [0, 1]; 0 returns `values`.

    Source: arXiv 2603.25562 Eq. 1–3 and its discounted estimator ĝ_γ.

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


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip: float, dual_clip: float | None = None) -> Tensor:
    """−min(ρA, clip(ρ, 1−ε, 1+ε) A), and for A < 0 at most −cA: the PPO surrogate as a loss [N].

    Its gradient vanishes where ρ has left the interval in the direction that A asks for; with `dual_clip` c also where
    A < 0 and ρ > c.

    Args:
        ratio: ρ = π(y)/π_rollout(y) [N], with gradient.
        advantage: A [N], constant; larger is better.
        clip: ε > 0.
        dual_clip: c > 1; None leaves large ratios of bad tokens alone.

    Source: arXiv 1707.06347 Eq. 7; arXiv 1912.09729 (dual clip).
    """
    loss = torch.maximum(-ratio * advantage, -ratio.clamp(1 - clip, 1 + clip) * advantage)
    if dual_clip is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -dual_clip * advantage), loss)


@dataclass(slots=True)
class RunningMean:
    """The mean over the values of all earlier updates; those of the update that uses it are not in it yet."""

    total: float = 0.0
    count: int = 0
    new_total: float = 0.0
    new_count: int = 0

    def value(self) -> float:
        """The mean; 0 before the first update has ended."""
        return self.total / self.count if self.count else 0.0

    def add(self, values: Tensor) -> None:
        """Add values of any shape; they count from the next update on."""
        self.new_total += float(values.sum())
        self.new_count += values.numel()

    def end_update(self, shared: Shared = alone) -> None:
        """Let the mean include what was added; `shared` gathers a value from every process."""
        added = shared((self.new_total, self.new_count))
        self.total += sum(total for total, _ in added)
        self.count += sum(count for _, count in added)
        self.new_total, self.new_count = 0.0, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledToken:
    """Policy gradient on r = log π(y) − log q(y), discounted by `gamma` along a trajectory (arXiv 2603.25562 Eq. 1–3).

    Gradient: −A_t ∇log π(y_t), A_t = b_t − R_t + w·Â, R_t = Σ_{t'≥t} γ^{t'−t} r_{t'} over all turns of the trajectory.
    Value: log π(y)/q(y), whose mean estimates KL(student‖teacher) per token on the student's rollouts (the k1
    estimate), so that it can be compared with other losses; its mean is negative only by chance.
    γ = 0 is the token-level estimator (biased, low variance), γ = 1 the sequence-level one (unbiased).

    Args:
        gamma: γ in [0, 1].
        extrapolation: λ. r becomes log π − log q − (λ−1)(log q − log p_ref), p_ref the student as it was at the start:
            λ > 1 goes beyond the teacher (arXiv 2602.12125 Eq. 13–14, discount 0; 1.25 is its advice). 1: no reference.
        reward_weight: w. Adds the group advantage Â of the environment's reward, (R − mean)/std over the group.
        baseline: b. `running_mean`: mean of R over earlier updates. `expected`: KL(π̂‖q̂) on the student's top-K, the
            mean of r over the next token (arXiv 2605.07865). Both leave the expected gradient as it is.
        k: size of the support of `baseline=expected`.
        clip: ε of the PPO surrogate for several updates a rollout; None: plain importance weighting of the gradient.
        dual_clip: c of its dual clip.
        policy: `full`: log π is of the full distribution. `top_p`: of the distribution that acted, which top-p had
            renormalised on the student's nucleus (the teacher's is full in both).
        advantage: `log_ratio`. `top_k_kl`, which other frameworks have, is refused with the reason.

    Raises:
        ValueError: if an argument makes no sense.
    """

    gamma: UnitFloat = 0.0
    extrapolation: NonNegativeFloat = 1.0
    reward_weight: NonNegativeFloat = 0.0
    baseline: Literal["none", "running_mean", "expected"] = "none"
    k: Annotated[int, Bounds(at_least=2)] = 32
    clip: Annotated[float, Bounds(above=0, below=1)] | None = None
    dual_clip: Annotated[float, Bounds(above=1)] | None = None
    policy: Literal["full", "top_p"] = "full"
    advantage: Literal["log_ratio", "top_k_kl"] = "log_ratio"
    running: RunningMean = field(default_factory=RunningMean, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"Expected `loss.gamma` to be a number in [0, 1], but got {self.gamma!r}.")
        if not self.extrapolation >= 0.0:
            raise ValueError(f"Expected `loss.extrapolation` to be a number ≥ 0, but got {self.extrapolation!r}.")
        if not self.reward_weight >= 0.0:
            raise ValueError(f"Expected `loss.reward_weight` to be a number ≥ 0, but got {self.reward_weight!r}.")
        if self.k < 2:
            raise ValueError(f"Expected `loss.k` to be at least 2, but got {self.k!r}: on one token the KL is 0.")
        if self.clip is not None and not 0.0 < self.clip < 1.0:
            raise ValueError(f"Expected `loss.clip` to be in (0, 1) or null, but got {self.clip!r}.")
        if self.dual_clip is not None and (self.clip is None or not self.dual_clip > 1.0):
            raise ValueError(
                f"Expected `loss.dual_clip` to be above 1 beside a `loss.clip`, but got {self.dual_clip!r} beside "
                f"{self.clip!r}."
            )
        if self.advantage == "top_k_kl":
            raise ValueError(
                "Expected `loss.advantage` to be 'log_ratio', but got 'top_k_kl': a KL over the support does not "
                "depend on the sampled token, so E[A ∇log π(y)] = A · ∇Σ_y π(y) = 0 and only noise is learnt. Use "
                "loss=topk_rkl, which differentiates it."
            )

    @property
    def needs(self) -> Needs:
        """The sampled token's log-probs of both models, and what baseline, reward and extrapolation add to them."""
        expected = self.baseline == "expected"
        return Needs(
            sampled=True,
            support=SupportKind.STUDENT_TOP_K if expected else None,
            k=self.k if expected else 0,
            reference=self.extrapolation != 1.0,
            group_advantage=self.reward_weight > 0,
            top_p=self.policy == "top_p",
            whole_trajectories=self.gamma > 0,
        )

    def __call__(self, scores: SupportScores, batch: TokenBatch) -> Tensor:
        """Log π(y)/q(y) [N] in nats, with the gradient −A_t ρ_t ∇log π(y_t); A_t is detached."""
        assert scores.student_sampled is not None
        assert scores.teacher_sampled is not None
        log_pi, log_q = scores.student_sampled, scores.teacher_sampled
        rolled_out = log_pi.detach() if batch.rollout_logprobs is None else batch.rollout_logprobs
        cost = rolled_out - log_q
        if scores.reference_sampled is not None:
            cost = cost - (self.extrapolation - 1.0) * (log_q - scores.reference_sampled)
        to_go = discounted_to_go(cost, batch.trajectory_index, batch.token_position, self.gamma)
        advantage = self._baseline(scores, to_go) - to_go
        if self.reward_weight:
            advantage = advantage + self.reward_weight * batch.group_advantage
        ratio = (log_pi - rolled_out).exp()
        if self.clip is None:
            surrogate = -ratio * advantage
        else:
            surrogate = clipped_surrogate(ratio, advantage, self.clip, self.dual_clip)
        return (log_pi.detach() - log_q) + (surrogate - surrogate.detach())

    def _baseline(self, scores: SupportScores, to_go: Tensor) -> Tensor | float:
        if self.baseline == "running_mean":
            self.running.add(to_go)
            return self.running.value()
        if self.baseline == "expected":
            assert scores.support is not None
            assert scores.student_logits is not None
            valid = scores.support.valid
            log_p = renormalised(scores.student_logits.detach(), valid)
            return reverse_kl(log_p, renormalised(scores.support.teacher_logits.to(log_p.dtype), valid))
        return 0.0

    def end_update(self, shared: Shared = alone) -> None:
        """Let the running mean include this update."""
        self.running.end_update(shared)

    def state_dict(self) -> dict[str, Any]:
        """The running mean, for a checkpoint."""
        return {"total": self.running.total, "count": self.running.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; what was added since the last update is dropped."""
        self.running.total, self.running.count = state["total"], state["count"]
        self.running.new_total, self.running.new_count = 0.0, 0
