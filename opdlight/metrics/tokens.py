"""Pure functions of what both models say at the loss positions: masses, overlap, gradients."""

import torch
from torch import Tensor

from opdlight.types import Support


def teacher_mass(support: Support) -> Tensor:
    """Coverage: Σ_{v∈S} q(v), [N], in [0, 1]."""
    return support.teacher_logprobs.exp().masked_fill(~support.valid, 0.0).sum(-1)


def student_mass(student_logits: Tensor, normaliser: Tensor, valid: Tensor) -> Tensor:
    """Σ_{v∈S} π(v), [N], in [0, 1]; 1 minus it is what a renormalised loss does not see. z [N, K], log-sum [N]."""
    return (student_logits - normaliser[:, None]).exp().masked_fill(~valid, 0.0).sum(-1)


def sampled_in_support(support: Support, target_ids: Tensor) -> Tensor:
    """1 where the student's token lies in S, [N]."""
    return ((support.token_ids == target_ids[:, None]) & support.valid).any(-1).float()


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """|A ∩ B| / K of two sets of K distinct ids, [N]. Arguments [N, K]."""
    return (a[:, :, None] == b[:, None, :]).any(-1).float().mean(-1)


def subsample(n: int, most: int, generator: torch.Generator | None = None) -> Tensor:
    """Indices [min(n, most)] into n positions, without replacement, ascending."""
    if n <= most:
        return torch.arange(n)
    return torch.randperm(n, generator=generator)[:most].sort().values
