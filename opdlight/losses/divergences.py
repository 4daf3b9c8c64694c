"""Divergences between two (sub-)distributions p (student) and q (teacher) on a support of K tokens.

Every function takes log p [N, K] with gradient and log q [N, K] without, and returns [N] in nats. An entry that does
not belong to the support holds `lowest(dtype)` in both: its probability is 0, its log-ratio 0, and no sum sees it.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

DivergenceName = Literal[
    "reverse_kl", "forward_kl", "jsd", "skewed_reverse_kl", "skewed_forward_kl", "stop_gradient", "generalised_kl"
]


def lowest(dtype: torch.dtype) -> float:
    """The log-probability of what is not in the support: the lowest finite number, so that differences are no NaN."""
    return torch.finfo(dtype).min


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(student‖teacher) = Σ p log(p/q): mode-seeking (PAPER Eq. 4).

    >>> round(reverse_kl(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()).item(), 4)
    0.1438
    """
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(teacher‖student) = Σ q log(q/p): mode-covering."""
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def jsd(log_p: Tensor, log_q: Tensor, mix: float) -> Tensor:
    """Generalised Jensen–Shannon: β KL(q‖m) + (1−β) KL(p‖m), m = β q + (1−β) p, β = `mix` (arXiv 2306.13649, Eq. 1).

    β = ½ is the symmetric one, at most log 2. JSD/β → KL(q‖p) as β → 0 and JSD/(1−β) → KL(p‖q) as β → 1.
    """
    log_m = torch.logaddexp(log_q + math.log(mix), log_p + math.log1p(-mix))
    return mix * forward_kl(log_m, log_q) + (1 - mix) * reverse_kl(log_p, log_m)


def skewed_reverse_kl(log_p: Tensor, log_q: Tensor, mix: float) -> Tensor:
    """KL(p ‖ (1−α) q + α p), α = `mix`: the reverse KL kept finite where q vanishes (arXiv 2402.03898, SRKL)."""
    return reverse_kl(log_p, torch.logaddexp(log_q + math.log1p(-mix), log_p + math.log(mix)))


def skewed_forward_kl(log_p: Tensor, log_q: Tensor, mix: float) -> Tensor:
    """KL(q ‖ α q + (1−α) p), α = `mix`: the forward KL kept finite where p vanishes (arXiv 2402.03898, SKL)."""
    return forward_kl(torch.logaddexp(log_q + math.log(mix), log_p + math.log1p(-mix)), log_q)


def stop_gradient(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ p · sg(log(p/q)): the value of the truncated reverse KL without its pull out of the support.

    Gradient Σ log(p/q) ∇p, which is 0 at p = q on the support, where that of Σ p log(p/q) is Σ ∇p (arXiv 2605.11182).
    """
    return (log_p.exp() * (log_p - log_q).detach()).sum(-1)


def generalised_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ [p log(p/q) − p + q]: a divergence also where the masses differ; gradient as `stop_gradient` (2606.30406)."""
    return (log_p.exp() * (log_p - log_q) - log_p.exp() + log_q.exp()).sum(-1)


PLAIN: dict[DivergenceName, Callable[[Tensor, Tensor], Tensor]] = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "stop_gradient": stop_gradient,
    "generalised_kl": generalised_kl,
}
MIXED: dict[DivergenceName, Callable[[Tensor, Tensor, float], Tensor]] = {
    "jsd": jsd,
    "skewed_reverse_kl": skewed_reverse_kl,
    "skewed_forward_kl": skewed_forward_kl,
}


def divergence(name: DivergenceName, mix: float | None) -> Callable[[Tensor, Tensor], Tensor]:
    """The divergence of this name, with its `mix` where it has one."""
    if name in PLAIN:
        return PLAIN[name]
    assert mix is not None
    mixed, share = MIXED[name], mix
    return lambda log_p, log_q: mixed(log_p, log_q, share)
