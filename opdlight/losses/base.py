"""What every loss looks like."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from opdlight.types import SupportScores, TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a loss wants to be computed; nothing else is."""

    support_k: int | None = None  # size of the teacher's top-K support; None: no support
    student_normaliser: bool = False  # the student's log-normaliser over its full vocabulary
    sampled: bool = False  # log-probs of the sampled token, of both models


class Loss(Protocol):
    """A per-token objective: a frozen dataclass of hyper-parameters that is called on scores.

    A loss never shifts, masks, pads or averages: that is done before (collate) and after (`reduce.token_mean`).
    """

    @property
    def needs(self) -> Needs:
        """What `scores` must hold."""

    def __call__(self, scores: SupportScores, batch: TokenBatch) -> Tensor:
        """Unreduced loss [N] in nats, with graph; smaller is better."""
