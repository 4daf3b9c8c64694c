"""The protocol of a loss, and what it may ask for."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
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
]  # the values of `SupportKind`, for a loss whose config names one


class SupportKind(StrEnum):
    """On which tokens the two models are compared."""

    TEACHER_TOP_K = "teacher_top_k"
    STUDENT_TOP_K = "student_top_k"
    TEACHER_TOP_K_AND_SAMPLED = "teacher_top_k_and_sampled"
    STUDENT_TOP_K_AND_SAMPLED = "student_top_k_and_sampled"
    TEACHER_NUCLEUS = "teacher_nucleus"
    FULL_VOCABULARY = "full_vocabulary"

    @property
    def chosen_by(self) -> Literal["teacher", "student"] | None:
        """Whose most probable tokens they are; None for the full vocabulary."""
        if self is SupportKind.FULL_VOCABULARY:
            return None
        student = (SupportKind.STUDENT_TOP_K, SupportKind.STUDENT_TOP_K_AND_SAMPLED)
        return "student" if self in student else "teacher"

    @property
    def with_sampled(self) -> bool:
        """True if the sampled token is always one of them."""
        return self in (SupportKind.TEACHER_TOP_K_AND_SAMPLED, SupportKind.STUDENT_TOP_K_AND_SAMPLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a loss asks for; nothing else is computed.

    Args:
        support: the tokens on which the two models are compared: `scores.support`, `scores.student_logits`. A
            `SupportKind`, or its value as a string; None: on none.
        k: size of a top-K support, and the upper limit of a nucleus.
        nucleus: teacher mass that a nucleus holds, in (0, 1].
        normaliser: the log-normaliser of both models over the full vocabulary: `scores.student_normaliser`,
            `scores.support.teacher_normaliser`.
        sampled: log-probs of the sampled token, of both models: `scores.student_sampled`, `scores.teacher_sampled`.
        top_p: the student's log-prob of the sampled token is of the distribution that top-p had left to the engine.
        teacher_entropy: −Σ q log q over the full vocabulary: `scores.teacher_entropy`.
        reference: log-probs of the sampled token under the student as it was at the start: `scores.reference_sampled`.
        engine_logprobs: the loss reads the engine's log-probs of the sampled token, at temperature 1:
            `batch.sampled_logprobs`.
        group_advantage: the loss reads the environment's reward against that of the same group:
            `batch.group_advantage`.
        whole_trajectories: the loss of a token depends on other tokens of its trajectory, as a discounted return does,
            so a micro-batch has all of them. False lets the rows of a long trajectory go to different micro-batches and
            ranks; on the full vocabulary the loss is then called on a few positions at a time, so that no [N, V] exist.

    Raises:
        ValueError: if `support` is no `SupportKind`; its values as strings are taken, too.
    """

    support: SupportKind | None = None
    k: int = 0
    nucleus: float = 1.0
    normaliser: bool = False
    sampled: bool = False
    top_p: bool = False
    teacher_entropy: bool = False
    reference: bool = False
    engine_logprobs: bool = False
    group_advantage: bool = False
    whole_trajectories: bool = True

    def __post_init__(self) -> None:
        if self.support is not None:
            object.__setattr__(self, "support", SupportKind(self.support))

    @property
    def chosen_by(self) -> Literal["teacher", "student"] | None:
        """Which model chooses K ids at a position; None if none does."""
        return None if self.support is None else self.support.chosen_by


class Loss(Protocol):
    """A per-token objective: an object with hyper-parameters that is called on the scores of a micro-batch.

    A loss never shifts, masks, pads or averages: that is done before it (`opdlight.batch.collate`) and after it
    (`reduce.token_mean`).
    """

    @property
    def needs(self) -> Needs:
        """What `scores` must hold; the same for every micro-batch."""

    def __call__(self, scores: SupportScores, batch: TokenBatch) -> Tensor:
        """The loss of each of the N positions [N] in nats, not reduced; smaller is better.

        Args:
            scores: what was asked for; the student's numbers carry the graph, the teacher's are detached.
            batch: the positions: tokens, turns, trajectories, the engine's log-probs.
        """


Shared = Callable[[Any], list[Any]]


def alone(value: Any) -> list[Any]:
    """The `all_gather` of one process: a list of the one value."""
    return [value]


@runtime_checkable
class Remembers(Protocol):
    """A loss with a state that lasts from update to update, such as a running mean."""

    def end_update(self, shared: Shared = alone) -> None:
        """Called after each optimizer step; `shared` gathers a value from every process into a list."""

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: numbers, strings, lists and dicts."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, and drop what was added since the last `end_update`.

        Called at a resume, and with the present `state_dict()` after each update and where one has failed.
        """
