"""Objectives: pure functions of scores on the support, per token and unreduced."""

from opdlight.losses.base import Loss, Needs
from opdlight.losses.divergences import TopKReverseKL, renormalised_reverse_kl
from opdlight.losses.masking import SpecialTokenMask
from opdlight.losses.reduce import token_mean
from opdlight.losses.sampled import SampledToken, discounted_to_go

__all__ = [
    "Loss",
    "Needs",
    "SampledToken",
    "SpecialTokenMask",
    "TopKReverseKL",
    "discounted_to_go",
    "renormalised_reverse_kl",
    "token_mean",
]
