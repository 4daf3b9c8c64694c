"""Pure functions of tokens and their probabilities: masses, overlap, concentration, gradient norms, repetition."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from opdlight.types import Support


def teacher_mass(support: Support) -> Tensor:
    """Coverage of the teacher: Σ_{v∈S} q(v), [N], in [0, 1]."""
    return support.teacher_logprobs.exp().masked_fill(~support.valid, 0.0).sum(-1)


def student_mass(student_logits: Tensor, normaliser: Tensor, valid: Tensor) -> Tensor:
    """Σ_{v∈S} π(v), [N], in [0, 1]: what it lacks to 1 is invisible to a renormalised loss.

    Args:
        student_logits: z on S [N, K].
        normaliser: log Σ_v exp(z_v) over the full vocabulary [N].
        valid: False on filler of the support [N, K].
    """
    return (student_logits - normaliser[:, None]).exp().masked_fill(~valid, 0.0).sum(-1)


def sampled_in_support(support: Support, target_ids: Tensor) -> Tensor:
    """1 where the student's token lies in S, [N]."""
    return ((support.token_ids == target_ids[:, None]) & support.valid).any(-1).float()


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """|A ∩ B| / K, [N], of two sets `a` and `b` [N, K] of K distinct ids per position."""
    return (a[:, :, None] == b[:, None, :]).any(-1).float().mean(-1)


def subsample(n: int, most: int, generator: torch.Generator | None = None) -> Tensor:
    """At most `most` indices into n positions, drawn without replacement, ascending, [min(n, most)]."""
    if n <= most:
        return torch.arange(n)
    return torch.randperm(n, generator=generator)[:most].sort().values


def top_share(values: Tensor, share: float) -> Tensor:
    """Share of Σ|v| that the ⌈share·n⌉ largest |v| make up, in [0, 1]; 0 if all values are 0.

    Args:
        values: [n], any sign and unit.
        share: share of the n entries, in (0, 1].

    >>> round(float(top_share(torch.tensor([6.0, -3.0, 1.0, 0.0]), 0.25)), 2)
    0.6
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"Expected argument `share` to be in (0, 1], but got {share!r}.")
    sizes = values.abs()
    count = math.ceil(share * len(sizes) - 1e-9)
    return sizes.topk(count).values.sum() / sizes.sum().clamp(min=1e-30)


def sampled_token_gradient_norm(student_logprobs: Tensor, token: Tensor, teacher_logprob: Tensor) -> Tensor:
    """‖∂ℓ_t/∂z_t‖ = |r_t| · ‖e_y − π‖ [N], the norm of the sampled token's policy gradient in the student's logits.

    r_t = log π(y_t) − log q(y_t) is detached; ‖e_y − π‖² = 1 − 2π(y) + Σ_v π(v)².

    Args:
        student_logprobs: log π [N, V].
        token: y [N].
        teacher_logprob: log q(y) [N].

    Source: arXiv 2603.25562 Eq. 1–3, discount 0.
    """
    chosen = student_logprobs.gather(1, token[:, None]).squeeze(1)
    squared = 1.0 - 2.0 * chosen.exp() + (2.0 * student_logprobs).exp().sum(1)
    return (chosen - teacher_logprob).abs() * squared.clamp(min=0.0).sqrt()


def matching_gradient_norm(student_logits: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """‖∂ℓ_t/∂z_t‖ = ‖p_j (log(p_j/q_j) − ℓ_t)‖ over j ∈ S [N], for local support matching, in the student's logits.

    p and q are both models renormalised on S, ℓ = Σ_S p log(p/q); outside S the gradient is 0.

    Args:
        student_logits: z on S [N, K].
        teacher_logprobs: log q on S [N, K], normalised or not.

    Source: arXiv 2603.25562 Eq. 8 and its gradient.
    """
    log_p, log_q = student_logits.log_softmax(1), teacher_logprobs.log_softmax(1)
    ratio = log_p - log_q
    loss = (log_p.exp() * ratio).sum(1, keepdim=True)
    return (log_p.exp() * (ratio - loss)).norm(dim=1)


def repeated(turns: Sequence[Sequence[int]], n: int) -> list[list[bool | None]]:
    """For each token of each turn, whether the n-gram that ends there has occurred before in the trajectory.

    An n-gram lies within one turn; its earlier occurrence may be in any turn and may overlap. The first n−1 tokens of a
    turn end no n-gram: None.

    >>> repeated([[1, 1, 1], [1, 1]], 2)
    [[None, False, True], [None, True]]
    """
    seen: set[tuple[int, ...]] = set()
    found: list[list[bool | None]] = []
    for ids in turns:
        flags: list[bool | None] = [None] * min(n - 1, len(ids))
        for end in range(n, len(ids) + 1):
            gram = tuple(ids[end - n : end])
            flags.append(gram in seen)
            seen.add(gram)
        found.append(flags)
    return found


def repetition_rate(turns: Sequence[Sequence[int]], n: int = 4) -> float:
    """Share of a trajectory's n-grams that have occurred in it before, in [0, 1); NaN if it has no n-gram."""
    flags = [flag for turn in repeated(turns, n) for flag in turn if flag is not None]
    return sum(flags) / len(flags) if flags else math.nan


def quantiles_by_bucket(values: Tensor, bucket: Tensor, buckets: int, quantiles: Sequence[float]) -> Tensor:
    """Quantiles of the values in each bucket, [buckets, len(quantiles)]; NaN for an empty bucket.

    Interpolated linearly between order statistics.

    Args:
        values: [n].
        bucket: number of the bucket of each value, [n].
        buckets: how many there are.
        quantiles: in [0, 1].
    """
    at = torch.tensor(quantiles, dtype=values.dtype)
    empty = torch.full_like(at, math.nan)
    parts = [values[bucket == b] for b in range(buckets)]
    return torch.stack([p.quantile(at) if len(p) else empty for p in parts])
