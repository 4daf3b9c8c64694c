"""What every loss looks like."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from opdlight.types import SupportScores, TokenBatch

SupportName = Literal[
    "teacher_top_k",
    "student_top_k",
    "teacher_top_k_and_sampled",
    "student_top_k_and_sampled",
    "teacher_nucleus",
    "full_vocabulary",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a loss wants to be computed; nothing else is."""

    support: SupportName | None = None  # on which tokens the two models are compared; None: on none
    k: int = 0  # size of a top-K support, and the upper limit of a nucleus
    nucleus: float = 1.0  # teacher mass that a nucleus holds
    normaliser: bool = False  # of both models: the log-normaliser over the full vocabulary
    sampled: bool = False  # log-probs of the sampled token, of both models
    top_p: bool = False  # the student's are of the distribution that top-p had left to the engine
    teacher_entropy: bool = False  # over the full vocabulary
    reference: bool = False  # log-probs of the sampled token under the student as it was at the start
    engine_logprobs: bool = False  # the engine's log-probs of the sampled token, at temperature 1
    group_advantage: bool = False  # the environment's reward against that of the same group


class Loss(Protocol):
    """A per-token objective: a frozen dataclass of hyper-parameters that is called on scores.

    A loss never shifts, masks, pads or averages: that is done before (collate) and after (`reduce.token_mean`).
    """

    @property
    def needs(self) -> Needs:
        """What `scores` must hold."""

    def __call__(self, scores: SupportScores, batch: TokenBatch) -> Tensor:
        """Unreduced loss [N] in nats, with graph; smaller is better."""


Shared = Callable[[Any], list[Any]]


def alone(value: Any) -> list[Any]:
    """What each process has of a value, where there is one process."""
    return [value]


@runtime_checkable
class Remembers(Protocol):
    """A loss that carries something from update to update."""

    def end_update(self, shared: Shared = alone) -> None:
        """An update is over; `shared` gives what each process has of a value."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
