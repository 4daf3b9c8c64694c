"""Support matching the slow, obvious way: one position, Python floats, no library."""

import math

from opdlight.losses import SupportMatching


def softmax(z: list[float]) -> list[float]:
    """exp z / Σ exp z."""
    total = math.fsum(math.exp(x) for x in z)
    return [math.exp(x) / total for x in z]


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


def compare(loss: SupportMatching, p: list[float], q: list[float]) -> tuple[float, list[float]]:
    """D(p, q) and ∂D/∂log p of every category, from the formulas on paper."""
    a = loss.mix or 0.0
    name = loss.divergence
    if name == "jsd":
        m = [a * y + (1 - a) * x for x, y in zip(p, q, strict=True)]
        value = sum(a * y * math.log(y / w) + (1 - a) * x * math.log(x / w) for x, y, w in zip(p, q, m, strict=True))
        return value, [(1 - a) * x * math.log(x / w) for x, w in zip(p, m, strict=True)]
    if name == "skewed_reverse_kl":
        m = [(1 - a) * y + a * x for x, y in zip(p, q, strict=True)]
        value = sum(x * math.log(x / w) for x, w in zip(p, m, strict=True))
        return value, [x * (math.log(x / w) + 1 - a * x / w) for x, w in zip(p, m, strict=True)]
    if name == "skewed_forward_kl":
        m = [a * y + (1 - a) * x for x, y in zip(p, q, strict=True)]
        value = sum(y * math.log(y / w) for y, w in zip(q, m, strict=True))
        return value, [-y * (1 - a) * x / w for x, y, w in zip(p, q, m, strict=True)]
    if name == "forward_kl":
        return sum(y * math.log(y / x) for x, y in zip(p, q, strict=True)), [-y for y in q]
    value = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    if name == "reverse_kl":
        return value, [x * (math.log(x / y) + 1) for x, y in zip(p, q, strict=True)]
    slopes = [x * math.log(x / y) for x, y in zip(p, q, strict=True)]
    return (value - sum(p) + sum(q) if name == "generalised_kl" else value), slopes


def reference(loss: SupportMatching, z: list[float], q_logits: list[float], y: int) -> tuple[float, list[float]]:
    """ℓ and ∂ℓ/∂z over the whole vocabulary."""
    pi, q = softmax(z), softmax(q_logits)
    inside = chosen(loss, pi, q, y)
    p_s, q_s = [pi[v] for v in inside], [q[v] for v in inside]
    gradient = [0.0] * len(z)
    if loss.outside == "renormalise":
        p_s, q_s = [x / sum(p_s) for x in p_s], [x / sum(q_s) for x in q_s]
        value, slopes = compare(loss, p_s, q_s)
        for v, p, slope in zip(inside, p_s, slopes, strict=True):
            gradient[v] = slope - p * sum(slopes)
        return value, gradient
    tail = 1 - sum(p_s)
    if loss.outside == "tail_bucket":
        p_s, q_s = [*p_s, tail], [*q_s, 1 - sum(q_s)]
    value, slopes = compare(loss, p_s, q_s)
    for v in range(len(z)):  # log p_j = z_j − log Σ exp z; the tail is log Σ_{v∉S} exp z − log Σ exp z
        own = slopes[inside.index(v)] if v in inside else slopes[-1] * pi[v] / tail * (loss.outside == "tail_bucket")
        gradient[v] = own - pi[v] * sum(slopes)
    if loss.outside == "sampled_tail" and y not in inside:
        ratio = math.log(pi[y] / q[y])
        value += ratio
        gradient = [g + ratio * ((v == y) - pi[v]) for v, g in enumerate(gradient)]
    return value, gradient
