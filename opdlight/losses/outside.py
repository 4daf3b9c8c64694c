"""What becomes of the probability outside the support: renormalised away, one more category, sampled, or ignored."""

from typing import Literal

import torch
from torch import Tensor

from opdlight.losses.divergences import lowest

OutsideName = Literal["renormalise", "tail_bucket", "sampled_tail", "ignore"]
SMALLEST_TAIL = 1e-6  # float32 cannot tell smaller tails from rounding in Σ_S p


def renormalised(values: Tensor, valid: Tensor) -> Tensor:
    """Log p̂ [N, K] = log-softmax over the valid entries of logits or log-probs [N, K]; a constant per row cancels.

    A row without a valid entry becomes uniform, for student and teacher alike: its divergence and gradient are 0.

    >>> renormalised(torch.tensor([[0.25, 0.25, 0.5]]).log(), torch.tensor([[True, True, False]])).exp().tolist()
    [[0.5, 0.5, 0.0]]
    """
    return values.masked_fill(~valid, lowest(values.dtype)).log_softmax(-1)


def absolute(logprobs: Tensor, valid: Tensor) -> Tensor:
    """Log p [N, K] as it is, normalised over the full vocabulary: the mass outside is ignored, so Σ_S p < 1."""
    return logprobs.masked_fill(~valid, lowest(logprobs.dtype))


def with_tail(logprobs: Tensor, valid: Tensor) -> Tensor:
    """Log p [N, K] and one more category log(1 − Σ_S p): a distribution of K+1 categories [N, K+1].

    A tail below `SMALLEST_TAIL` is raised to it in the value; its gradient stays that of the tail as it was.
    """
    inside = absolute(logprobs, valid)
    tail = 1.0 - inside.exp().sum(-1, keepdim=True)
    tail = tail + (SMALLEST_TAIL - tail).clamp(min=0.0).detach()
    return torch.cat([inside, tail.log()], -1)


def sampled_tail(log_pi: Tensor, log_q: Tensor, inside: Tensor) -> Tensor:
    """1[y∉S] · sg(log π(y) − log q(y)) · π(y)/sg(π(y)) [N]: the mass outside S, estimated by the sampled token.

    Value r = log π(y)/q(y) and gradient r ∇log π(y) where y ∉ S, else 0: over y ~ π the value averages to
    Σ_{v∉S} π log(π/q) and the gradient to Σ_{v∉S} log(π/q) ∇π (arXiv 2603.25562 App. G.3, after 2602.04417).

    Args:
        log_pi: log π(y) [N], with gradient.
        log_q: log q(y) [N].
        inside: [N] bool, y ∈ S.
    """
    ratio = (log_pi - log_q).detach()
    return torch.where(inside, 0.0, ratio * (log_pi - log_pi.detach()).exp())
