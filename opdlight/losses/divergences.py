"""Divergences between two (sub-)distributions p (student) and q (teacher) on a support of K tokens.

Every function takes log p [N, K] with gradient and log q [N, K] without, and returns [N] in nats. An entry that does
not belong to the support holds `lowest(dtype)` in both: its probability is 0 and its log-ratio 0, so it adds nothing to
a sum.

Gradients are closed forms (`with_slope`) that are exactly 0.0 where log p and log q have the same bits. Autograd of the
same values leaves about 1e-9 there, and AdamW, which divides a gradient by its own size, would make a step of it. The
categories of a distribution add up to 1, so a multiple of p may be left out of ∂D/∂log p: it vanishes in
log p = log-softmax(z), up to rounding.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

DivergenceName = Literal[
    "reverse_kl", "forward_kl", "jsd", "skewed_reverse_kl", "skewed_forward_kl", "stop_gradient", "generalised_kl"
]
Divergence = Callable[[Tensor, Tensor], Tensor]  # log p [N, K], log q [N, K] → [N]


def lowest(dtype: torch.dtype) -> float:
    """The log-probability of what is not in the support: the lowest finite number, so that no difference is NaN."""
    return torch.finfo(dtype).min


class _WithSlope(torch.autograd.Function):
    """A value [N] whose gradient with respect to log p [N, K] is given: `slope`."""

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return grad.unsqueeze(-1) * slope, None, None


def with_slope(log_p: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """`value` [N] with the gradient `slope` [N, K] with respect to log p [N, K]; both are detached.

    >>> x = torch.tensor([[0.0, 0.0]], requires_grad=True)
    >>> with_slope(x, torch.tensor([3.0]), torch.tensor([[1.0, 2.0]])).sum().backward()
    >>> x.grad.tolist()
    [[1.0, 2.0]]
    """
    found: Tensor = _WithSlope.apply(log_p, value.detach(), slope.detach())
    return found


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(student‖teacher) = Σ p log(p/q) of distributions: mode-seeking (arXiv 2603.25562 Eq. 4). Slope p log(p/q).

    >>> round(reverse_kl(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()).item(), 4)
    0.1438
    """
    return stop_gradient(log_p, log_q)


def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(teacher‖student) = Σ q log(q/p) of distributions: mode-covering. Slope p − q."""
    q = log_q.exp()
    return with_slope(log_p, (q * (log_q - log_p)).sum(-1), log_p.exp() - q)


def jsd(log_p: Tensor, log_q: Tensor, mix: float) -> Tensor:
    """Generalised Jensen–Shannon: β KL(q‖m) + (1−β) KL(p‖m), m = β q + (1−β) p, β = `mix` (arXiv 2306.13649, Eq. 1).

    β = ½ is the symmetric one, at most log 2. JSD/β → KL(q‖p) as β → 0 and JSD/(1−β) → KL(p‖q) as β → 1.
    Slope (1−β) p log(p/m).
    """
    ratio, to_mixture = log_q - log_p, _log_mixture(log_q - log_p, mix)
    ours = -(1 - mix) * log_p.exp() * to_mixture
    return with_slope(log_p, (mix * log_q.exp() * (ratio - to_mixture) + ours).sum(-1), ours)


def skewed_reverse_kl(log_p: Tensor, log_q: Tensor, mix: float) -> Tensor:
    """KL(p ‖ m), m = (1−α) q + α p, α = `mix`: the reverse KL kept finite where q vanishes (arXiv 2402.03898, SRKL).

    Slope p [log(p/m) + α (1 − p/m)].
    """
    p, to_mixture = log_p.exp(), _log_mixture(log_q - log_p, 1 - mix)
    return with_slope(log_p, -(p * to_mixture).sum(-1), -p * (to_mixture + mix * torch.expm1(-to_mixture)))


def skewed_forward_kl(log_p: Tensor, log_q: Tensor, mix: float) -> Tensor:
    """KL(q ‖ m), m = α q + (1−α) p, α = `mix`: the forward KL kept finite where p vanishes (arXiv 2402.03898, SKL).

    Slope (1−α) (p − q p/m).
    """
    q, to_mixture = log_q.exp(), _log_mixture(log_q - log_p, mix)
    slope = (1 - mix) * (log_p.exp() - q * (-to_mixture).exp())
    return with_slope(log_p, (q * (log_q - log_p - to_mixture)).sum(-1), slope)


def truncated_reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ p log(p/q) of sub-distributions: slope p (log(p/q) + 1), not 0 at p = q, where it is that of the mass Σ p."""
    p, ratio = log_p.exp(), log_p - log_q
    return with_slope(log_p, (p * ratio).sum(-1), p * (ratio + 1))


def stop_gradient(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ p · sg(log(p/q)): the value of the truncated reverse KL without its pull out of the support.

    Slope p log(p/q), which is 0 at p = q on the support, where that of Σ p log(p/q) is p (arXiv 2605.11182).
    """
    each = log_p.exp() * (log_p - log_q)
    return with_slope(log_p, each.sum(-1), each)


def generalised_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ [p log(p/q) − p + q]: a divergence also where the masses differ; gradient as `stop_gradient` (2606.30406)."""
    return stop_gradient(log_p, log_q) + (log_q.exp() - log_p.detach().exp()).sum(-1)


def _log_mixture(ratio: Tensor, share: float) -> Tensor:
    """Log m/p of m = share · q + (1 − share) · p, from log q/p: exactly 0 where that is 0, and never an overflow."""
    below = torch.log1p(share * torch.expm1(ratio.clamp(max=0)))
    return torch.where(ratio <= 0, below, ratio + torch.log1p((1 - share) * torch.expm1(-ratio.clamp(min=0))))


BY_NAME: dict[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (
        reverse_kl, forward_kl, jsd, skewed_reverse_kl, skewed_forward_kl, stop_gradient, generalised_kl
    )
}  # fmt: skip
MIXED = frozenset(name for name, function in BY_NAME.items() if "mix" in inspect.signature(function).parameters)


def named(name: DivergenceName, mix: float | None, *, truncated: bool) -> Divergence:
    """The divergence of this name, with its `mix` if it has one; `truncated`: p and q do not add up to 1."""
    if truncated and name == "reverse_kl":
        return truncated_reverse_kl
    return partial(BY_NAME[name], mix=mix) if name in MIXED else BY_NAME[name]
