"""Trajectories → training rows: the one place that merges turns, shifts, and says which tokens carry loss."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from opdlight.types import SharedVocabulary, Trajectory

Integers = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One training row of T tokens with n loss positions, in arrays: ranks send each other their rows."""

    ids: Integers  # [T]
    cols: Integers  # [n] columns whose hidden state predicts the student's token, which stands in the column after it
    logprobs: npt.NDArray[np.float32]  # [n] of the engine
    turns: Integers  # [n] turn within the trajectory, from 0
    positions: Integers  # [n] number of student tokens before it in the trajectory

    @property
    def targets(self) -> Integers:
        """The student's tokens [n]."""
        return self.ids[self.cols + 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryRows:
    """The training rows of one trajectory, and what its reward is compared with."""

    task: str
    group: int
    reward: float
    rows: list[Row]


@dataclass(slots=True)
class _Draft:
    """A row that may still grow."""

    ids: list[int]
    cols: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)

    def row(self) -> Row:
        return Row(
            ids=np.array(self.ids, np.int32),
            cols=np.array(self.cols, np.int32),
            logprobs=np.array(self.logprobs, np.float32),
            turns=np.array(self.turns, np.int32),
            positions=np.array(self.positions, np.int32),
        )


def rows_of(
    trajectory: Trajectory, loss_mask: Callable[[list[int]], list[bool]], shared: SharedVocabulary
) -> list[Row]:
    """Merge turns into rows: a prompt that starts with all tokens of the last row extends it, any other begins one.

    Args:
        trajectory: what was rolled out.
        loss_mask: completion ids [C] → which of them are trained on [C].
        shared: other tokens carry no loss.

    Raises:
        ValueError: if a prompt is empty.
    """
    drafts: list[_Draft] = []
    produced = 0
    for number, turn in enumerate(trajectory.turns):
        if not turn.prompt_ids:
            raise ValueError("Expected `Turn.prompt_ids` to hold at least one token, but got none.")
        if drafts and turn.prompt_ids[: len(drafts[-1].ids)] == drafts[-1].ids:
            draft = drafts[-1]
            draft.ids = list(turn.prompt_ids)
        else:
            draft = _Draft(ids=list(turn.prompt_ids))
            drafts.append(draft)
        keep = loss_mask(turn.completion_ids)
        for i, (token, logprob) in enumerate(zip(turn.completion_ids, turn.sampled_logprobs, strict=True)):
            if keep[i] and token in shared:
                draft.cols.append(len(draft.ids) + i - 1)  # the shift: this hidden state predicts `token`
                draft.logprobs.append(logprob)
                draft.turns.append(number)
                draft.positions.append(produced + i)
        produced += len(turn.completion_ids)
        draft.ids.extend(turn.completion_ids)
    return [draft.row() for draft in drafts]


def count_splits(trajectory: Trajectory) -> int:
    """The number of extra training rows of a trajectory, one for each time that its rendered history was rewritten."""
    return max(len(row_lengths(trajectory)) - 1, 0)


def row_lengths(trajectory: Trajectory) -> list[int]:
    """The tokens of each training row of a trajectory."""
    return [len(row.ids) for row in rows_of(trajectory, lambda ids: [False] * len(ids), SharedVocabulary(0))]
