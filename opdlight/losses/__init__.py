"""Objectives: pure functions of scores on the support, per token and unreduced."""

from opdlight.losses.base import Loss, Needs, Remembers, SupportKind
from opdlight.losses.direct import DirectEstimate
from opdlight.losses.masking import SpecialTokenMask
from opdlight.losses.matching import SupportMatching
from opdlight.losses.reduce import token_mean
from opdlight.losses.sampled import SampledToken, discounted_to_go
from opdlight.losses.supports import make_support
from opdlight.losses.weighted import EntropyAware, ImportanceWeighted, TurnWeighted

__all__ = [
    "DirectEstimate",
    "EntropyAware",
    "ImportanceWeighted",
    "Loss",
    "Needs",
    "Remembers",
    "SampledToken",
    "SpecialTokenMask",
    "SupportKind",
    "SupportMatching",
    "TurnWeighted",
    "discounted_to_go",
    "make_support",
    "token_mean",
]
