"""Divergences between student and teacher on a support of K tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from opdlight.losses.base import Needs
from opdlight.types import SupportScores, TokenBatch


def renormalised_reverse_kl(student_logits: Tensor, teacher_logprobs: Tensor, valid: Tensor) -> Tensor:
    """KL(student‖teacher) of the two distributions renormalised on the valid support.

    ℓ = Σ_{v∈S} π̂(v) log(π̂(v)/q̂(v)), π̂ = softmax(z_π[S]), q̂ = softmax(log q[S]);  ∂ℓ/∂z_j = π̂_j (log(π̂_j/q̂_j) − ℓ).
    Both arguments may be off by a constant per position: it cancels. Tokens outside S get no gradient.

    Args:
        student_logits: [N, K], divided by the temperature, with gradient.
        teacher_logprobs: [N, K], constant.
        valid: [N, K] bool; False entries do not belong to S and may hold anything.

    Returns:
        [N] in nats, float32 or wider, ≥ 0 up to rounding; 0 with a zero gradient where no entry is valid.

    Source: PAPER Eq. 4–8.

    >>> z, q = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.75, 0.25]]).log()
    >>> round(renormalised_reverse_kl(z, q, torch.ones(1, 2, dtype=torch.bool)).item(), 4)
    0.1438
    """
    wide = torch.promote_types(student_logits.dtype, torch.float32)
    # The lowest finite number, not −inf: an invalid entry has π̂ = 0 and a finite log-ratio, hence no share in the sum,
    # and a row without a valid entry is uniform on both sides: 0.
    lowest = torch.finfo(wide).min
    log_pi = student_logits.to(wide).masked_fill(~valid, lowest).log_softmax(-1)
    log_q = teacher_logprobs.to(wide).masked_fill(~valid, lowest).log_softmax(-1)
    return (log_pi.exp() * (log_pi - log_q)).sum(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopKReverseKL:
    """Local support matching: `renormalised_reverse_kl` on the teacher's top-K (PAPER Eq. 4–8).

    Needs K student logits a position and no student normaliser. Leaves out: student mass outside the support gets no
    gradient (watch `coverage/student_mass`).
    """

    k: int = 32

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ValueError(
                f"Expected `loss.k` to be at least 2, but got {self.k!r}: renormalised on one token both models give "
                "it probability 1, so the loss would be 0 whatever they say."
            )

    @property
    def needs(self) -> Needs:
        """The support alone."""
        return Needs(support_k=self.k)

    def __call__(self, scores: SupportScores, batch: TokenBatch) -> Tensor:
        """ℓ [N]."""
        assert scores.support is not None
        assert scores.student_logits is not None
        return renormalised_reverse_kl(scores.student_logits, scores.support.teacher_logprobs, scores.support.valid)
