"""Support matching: a divergence on a support, composed of three choices."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from opdlight.bounds import Bounds, PositiveInt
from opdlight.losses.base import Needs, SupportKind, SupportName
from opdlight.losses.divergences import BY_NAME, MIXED, Divergence, DivergenceName, named
from opdlight.losses.outside import OutsideName, absolute, renormalised, sampled_tail, with_tail
from opdlight.types import SupportScores, TokenBatch

FOR_PARTS = ("stop_gradient", "generalised_kl")  # made for masses that differ


@dataclass(frozen=True, slots=True, kw_only=True)
class SupportMatching:
    """ℓ = D(p, q) on the tokens of a support. The defaults are local support matching (LSM, arXiv 2603.25562 Eq. 4–8).

    With them S = the teacher's top-K, p = softmax(z_π[S]), q = softmax(log q[S]), ℓ = Σ_S p log(p/q), and
    ∂ℓ/∂z_j = p_j (log(p_j/q_j) − ℓ) on S and 0 outside. LSM needs K logits a position of each model and no normaliser;
    student mass outside S gets no gradient (watch `coverage/student_mass`).

    If teacher and student are equal, value and gradient are exactly 0, whatever the choices, but for reverse_kl with
    `ignore` or `sampled_tail`: those leave the gradient of Σ_S p.

    Args:
        support: which tokens are compared. No gradient goes through the choice, even if the student makes it.
        k: size of a top-K support, upper limit of a nucleus; unused by the full vocabulary.
        divergence: the name of one in `opdlight.losses.divergences`, or a function of your own, log p [N, K] and log q
            [N, K] of distributions → [N], in a config `{_target_: my_losses.hellinger, _partial_: true}`.
        outside: what becomes of the mass outside. `renormalise`: both models are renormalised on S. `tail_bucket`: it
            is one more category, whichever tokens hold it. `sampled_tail`: it is estimated by the sampled token where
            that lies outside. `ignore`: it is left out.
        mix: β of jsd, α of the skewed divergences, in (0, 1).
        nucleus: teacher mass that a nucleus holds, in (0, 1].

    Raises:
        ValueError: if a choice makes no sense, with the reason.
    """

    support: SupportName = "teacher_top_k"
    k: PositiveInt = 32
    divergence: DivergenceName | Divergence = "reverse_kl"
    outside: OutsideName = "renormalise"
    mix: Annotated[float, Bounds(above=0, below=1)] | None = None
    nucleus: Annotated[float, Bounds(above=0, at_most=1)] | None = None

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise ValueError(problem)

    def _problem(self) -> str:
        if self.k < 2 and self.outside == "renormalise" and self.support != "full_vocabulary":
            return (
                f"Expected `loss.k` to be at least 2, but got {self.k!r}: renormalised on one token both models give "
                "it probability 1, so the loss would be 0 whatever they say."
            )
        if self.k < 1:
            return f"Expected `loss.k` to be at least 1, but got {self.k!r}."
        if isinstance(self.divergence, str) and self.divergence not in BY_NAME:
            return (
                f"Expected `loss.divergence` to be one of {', '.join(BY_NAME)} or a function, but got "
                f"{self.divergence!r}."
            )
        if self.divergence in FOR_PARTS and self.outside == "renormalise":
            return (
                f"Expected `loss.divergence` with `loss.outside=renormalise` to be one of distributions, but got "
                f"{self.divergence!r}: once both models are renormalised it has the gradient of reverse_kl, so ask for "
                "that."
            )
        if self.divergence in FOR_PARTS and self.outside == "tail_bucket":
            return (
                f"Expected `loss.divergence` with `loss.outside=tail_bucket` to be one of distributions, but got "
                f"{self.divergence!r}: the K+1 categories already add up to 1, so ask for reverse_kl."
            )
        if self.outside == "sampled_tail" and self.divergence not in ("reverse_kl", "stop_gradient"):
            return (
                f"Expected `loss.divergence` with `loss.outside=sampled_tail` to be reverse_kl or stop_gradient, but "
                f"got {self.divergence!r}: the tail that a token of the student's estimates is that of the reverse KL."
            )
        if self.outside == "sampled_tail" and SupportKind(self.support).with_sampled:
            return (
                f"Expected `loss.support` with `loss.outside=sampled_tail` to leave the sampled token out, but got "
                f"{self.support!r}: the sampled token always lies inside, so the tail would always be 0."
            )
        if self.outside != "renormalise" and self.support == "full_vocabulary":
            return (
                f"Expected `loss.outside` with `loss.support=full_vocabulary` to be renormalise, but got "
                f"{self.outside!r}: nothing lies outside the vocabulary."
            )
        if self.outside == "ignore" and self.divergence not in (*FOR_PARTS, "reverse_kl"):
            return (
                f"Expected `loss.divergence` with `loss.outside=ignore` to be reverse_kl, stop_gradient or "
                f"generalised_kl, but got {self.divergence!r}: on masses that differ it is no divergence; renormalise, "
                "or use the tail bucket."
            )
        if (self.divergence in MIXED) != (self.mix is not None):
            return (
                f"Expected `loss.mix` to be {'in (0, 1)' if self.divergence in MIXED else 'null'} for "
                f"`loss.divergence={self.divergence}`, but got {self.mix!r}."
            )
        if self.mix is not None and not 0.0 < self.mix < 1.0:
            return f"Expected `loss.mix` to be in (0, 1), but got {self.mix!r}."
        if (self.support == "teacher_nucleus") != (self.nucleus is not None):
            return (
                f"Expected `loss.nucleus` to be {'in (0, 1]' if self.support == 'teacher_nucleus' else 'null'} for "
                f"`loss.support={self.support}`, but got {self.nucleus!r}."
            )
        if self.nucleus is not None and not 0.0 < self.nucleus <= 1.0:
            return f"Expected `loss.nucleus` to be in (0, 1], but got {self.nucleus!r}."
        return ""

    @property
    def needs(self) -> Needs:
        """The support; the normalisers unless both models are renormalised on it; the sampled token's tail."""
        return Needs(
            support=SupportKind(self.support),
            k=self.k,
            nucleus=1.0 if self.nucleus is None else self.nucleus,
            normaliser=self.outside != "renormalise",
            sampled=self.outside == "sampled_tail",
            whole_trajectories=False,
        )

    def __call__(self, scores: SupportScores, batch: TokenBatch) -> Tensor:
        """ℓ [N], float32 or wider; 0 with a zero gradient where no entry of the support is valid."""
        support, logits = scores.support, scores.student_logits
        assert support is not None
        assert logits is not None
        compare = self.divergence
        if isinstance(compare, str):
            compare = named(compare, self.mix, truncated=self.outside in ("ignore", "sampled_tail"))
        wide = torch.promote_types(torch.promote_types(logits.dtype, support.teacher_logits.dtype), torch.float32)
        logits, teacher_logits = logits.to(wide), support.teacher_logits.to(wide)
        if self.outside == "renormalise":
            return compare(renormalised(logits, support.valid), renormalised(teacher_logits, support.valid))
        assert scores.student_normaliser is not None
        assert support.teacher_normaliser is not None
        treat = with_tail if self.outside == "tail_bucket" else absolute
        log_p = treat(logits - scores.student_normaliser.unsqueeze(1), support.valid)
        loss = compare(log_p, treat(teacher_logits - support.teacher_normaliser.unsqueeze(1), support.valid))
        if self.outside != "sampled_tail":
            return loss
        assert scores.student_sampled is not None
        assert scores.teacher_sampled is not None
        inside = ((support.token_ids == batch.target_ids.unsqueeze(1)) & support.valid).any(1)
        return loss + sampled_tail(scores.student_sampled, scores.teacher_sampled, inside)
