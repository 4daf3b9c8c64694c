"""Objectives: pure functions of scores on the support, per token and unreduced."""

from opdlight.losses.base import Loss, Needs
from opdlight.losses.masking import SpecialTokenMask
from opdlight.losses.matching import SupportMatching
from opdlight.losses.reduce import token_mean
from opdlight.losses.sampled import SampledToken, discounted_to_go
from opdlight.losses.supports import complete

__all__ = [
    "Loss",
    "Needs",
    "SampledToken",
    "SpecialTokenMask",
    "SupportMatching",
    "complete",
    "discounted_to_go",
    "token_mean",
]
