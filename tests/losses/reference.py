"""Support matching the slow, obvious way: one position in float64, formulas as they stand on paper, plain autograd.

`FORMULAS` is the shared test table: a new divergence adds one row, and every test of the family applies to it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from opdlight.losses import SupportMatching
from opdlight.losses.divergences import Divergence, DivergenceName

# the divergence, by name or as a function → its terms [K], to be summed, from p [K] (student, with graph) and q [K]
# (teacher); a third argument is the `mix`
FORMULAS: dict[DivergenceName | Divergence, Callable[..., Tensor]] = {
    "reverse_kl": lambda p, q: p * (p / q).log(),
    "forward_kl": lambda p, q: q * (q / p).log(),
    "jsd": lambda p, q, b: b * q * (q / (b * q + (1 - b) * p)).log() + (1 - b) * p * (p / (b * q + (1 - b) * p)).log(),
    "skewed_reverse_kl": lambda p, q, a: p * (p / ((1 - a) * q + a * p)).log(),
    "skewed_forward_kl": lambda p, q, a: q * (q / (a * q + (1 - a) * p)).log(),
    "stop_gradient": lambda p, q: p * (p / q).log().detach(),
    "generalised_kl": lambda p, q: p * (p / q).log() - p + q,
}


def softmax(z: Tensor) -> Tensor:
    """exp z / Σ exp z."""
    return z.exp() / z.exp().sum()


def chosen(loss: SupportMatching, pi: list[float], q: list[float], y: int) -> list[int]:
    """The tokens of the support."""
    by = pi if loss.support.startswith("student") else q
    best = sorted(range(len(q)), key=lambda v: -by[v])
    if loss.support == "full_vocabulary":
        return best
    best = best[: loss.k]
    if loss.support == "teacher_nucleus":
        assert loss.nucleus is not None
        kept: list[int] = []
        while len(kept) < len(best) and sum(q[v] for v in kept) < loss.nucleus:
            kept.append(best[len(kept)])
        return kept
    return [*best, y] if loss.support.endswith("_and_sampled") and y not in best else best


def reference(loss: SupportMatching, z: Tensor, q_logits: Tensor, y: int) -> tuple[Tensor, Tensor]:
    """ℓ [] and ∂ℓ/∂z [V] of one position, z and q_logits [V] in float64."""
    z = z.detach().requires_grad_()
    pi, q = softmax(z), softmax(q_logits)
    inside = chosen(loss, pi.tolist(), q.tolist(), y)
    p_s, q_s = pi[inside], q[inside]
    if loss.outside == "renormalise":
        p_s, q_s = p_s / p_s.sum(), q_s / q_s.sum()
    if loss.outside == "tail_bucket":
        p_s, q_s = (torch.cat([x, 1 - x.sum(0, keepdim=True)]) for x in (p_s, q_s))
    value = FORMULAS[loss.divergence](p_s, q_s, *([] if loss.mix is None else [loss.mix])).sum()
    if loss.outside == "sampled_tail" and y not in inside:
        value = value + (pi[y] / q[y]).log().detach() * pi[y] / pi[y].detach()
    (gradient,) = torch.autograd.grad(value, z)
    return value.detach(), gradient
