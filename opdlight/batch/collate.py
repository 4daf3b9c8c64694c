"""Trajectories → micro-batches of tokens: the one place that pads and flattens."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from opdlight.batch.rows import Row, TrajectoryRows, rows_of
from opdlight.batch.split import with_global_tokens
from opdlight.types import SharedVocabulary, TokenBatch, Trajectory

PAD_ID = 0  # arbitrary: padding is never attended to and never a loss position


class PlacedRow(NamedTuple):
    """A row of an update."""

    row: Row
    task: int  # index into `Collate.tasks`
    trajectory: int  # number of its trajectory in the update
    advantage: float  # of its trajectory within its group


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows that stay in one micro-batch: those of one trajectory, or a single one."""

    rows: list[PlacedRow]
    group: tuple[str, int]  # task and group of its trajectory

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(placed.row.ids) for placed in self.rows)

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(placed.row.ids) for placed in self.rows)

    @property
    def loss_tokens(self) -> int:
        """Loss positions of all rows."""
        return sum(len(placed.row.cols) for placed in self.rows)


@dataclass(slots=True)
class MicroBatch:
    """The pieces of a micro-batch, the one with the longest row first unless rows are packed."""

    pieces: list[Piece]
    width: int  # of the first piece's longest row, which is the longest of all unless rows are packed
    rows: int = field(init=False)
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows, self.tokens = sum(len(p.rows) for p in self.pieces), sum(p.tokens for p in self.pieces)

    def add(self, piece: Piece) -> None:
        """Take one more piece."""
        self.pieces.append(piece)
        self.rows += len(piece.rows)
        self.tokens += piece.tokens


def _batch(placed: Sequence[PlacedRow], tasks: tuple[str, ...], *, packed: bool) -> TokenBatch:
    longest = max(len(p.row.ids) for p in placed)
    input_ids = torch.full((len(placed), longest), PAD_ID, dtype=torch.long)
    attention_mask = torch.zeros((len(placed), longest), dtype=torch.bool)
    for b, (row, *_) in enumerate(placed):
        input_ids[b, : len(row.ids)] = torch.from_numpy(row.ids)
        attention_mask[b, : len(row.ids)] = True
    positions = torch.arange(longest).expand(len(placed), -1)
    counts = torch.tensor([len(p.row.cols) for p in placed])
    number: dict[int, int] = {}
    trajectories = [number.setdefault(p.trajectory, len(number)) for p in placed]

    def flat(values: Callable[[Row], npt.NDArray[np.generic]], dtype: torch.dtype = torch.long) -> Tensor:
        return torch.from_numpy(np.concatenate([values(p.row) for p in placed])).to(dtype)

    def repeated(values: Sequence[float], dtype: torch.dtype = torch.long) -> Tensor:
        return torch.tensor(values, dtype=dtype).repeat_interleave(counts)

    return TokenBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=positions * attention_mask,
        row_index=repeated(range(len(placed))),
        col_index=flat(lambda row: row.cols),
        target_ids=flat(lambda row: row.targets),
        sampled_logprobs=flat(lambda row: row.logprobs, torch.float32),
        turn_index=flat(lambda row: row.turns),
        token_position=flat(lambda row: row.positions),
        trajectory_index=repeated(trajectories),
        task_index=repeated([p.task for p in placed]),
        group_advantage=repeated([p.advantage for p in placed], torch.float32),
        tasks=tasks,
        global_tokens=0,
        packed=packed,
    )


def group_advantages(trajectories: Sequence[Trajectory | TrajectoryRows]) -> list[float]:
    """(R − mean)/std of each trajectory's reward R within its task and group; 0 where all rewards are equal.

    std is the population standard deviation, so the advantage is 0 in a group of one.
    """
    groups: dict[tuple[str, int], list[float]] = defaultdict(list)
    for t in trajectories:
        groups[t.task, t.group].append(t.reward)
    spread = {key: (fmean(rewards), pstdev(rewards)) for key, rewards in groups.items()}
    found = []
    for t in trajectories:
        mean, std = spread[t.task, t.group]
        found.append((t.reward - mean) / std if std else 0.0)
    return found


def keep_all(completion_ids: list[int]) -> list[bool]:
    """A loss mask [C] that keeps every token of `completion_ids` [C]."""
    return [True] * len(completion_ids)


def count_unshared(trajectories: Sequence[Trajectory], shared: SharedVocabulary) -> int:
    """The number of sampled tokens that carry no loss because their id is not in the `shared` vocabulary."""
    return sum(token not in shared for t in trajectories for turn in t.turns for token in turn.completion_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collate:
    """Splits trajectories into micro-batches of at most `micro_batch_tokens` tokens, of similar lengths each.

    Rows without a loss position (empty completion, all tokens masked) are left out. A row is never cut: one that is
    longer than `micro_batch_tokens` is a micro-batch by itself, and so is a longer trajectory that has to stay whole.
    The `global_tokens` of every micro-batch is the number of loss positions of all of them.

    Args:
        tasks: names, in the order of `TokenBatch.task_index`.
        shared: other tokens carry no loss.
        micro_batch_tokens: most tokens of a micro-batch, padding included unless `packed`.
        loss_mask: completion ids [C] → which of them are trained on [C].
        whole_trajectories: keep the rows of a trajectory in one micro-batch, so that a loss can sum along it
            (`Needs.whole_trajectories`).
        packed: micro-batches for models that run their rows as one, without padding.
    """

    tasks: tuple[str, ...]
    shared: SharedVocabulary
    micro_batch_tokens: int = 8192
    loss_mask: Callable[[list[int]], list[bool]] = keep_all
    whole_trajectories: bool = True
    packed: bool = False

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[TokenBatch]:
        """Micro-batches, those with the longest rows first, so that running out of memory shows early; may be empty."""
        pieces = self.pieces([self.rows(trajectory) for trajectory in trajectories])
        return with_global_tokens([self.batch(found) for found in self.micro_batches(pieces)])

    def rows(self, trajectory: Trajectory) -> TrajectoryRows:
        """The rows of a trajectory that have a loss position."""
        rows = [row for row in rows_of(trajectory, self.loss_mask, self.shared) if len(row.cols)]
        return TrajectoryRows(task=trajectory.task, group=trajectory.group, reward=trajectory.reward, rows=rows)

    def pieces(self, trajectories: Sequence[TrajectoryRows]) -> list[Piece]:
        """What may go to different micro-batches, the longest rows first.

        If `packed`, those of a group follow each other, since models compute its prompt once for each micro-batch, and
        the groups with the longest rows come first.

        Args:
            trajectories: of an update, whole groups.
        """
        pieces: list[Piece] = []
        for number, (t, advantage) in enumerate(zip(trajectories, group_advantages(trajectories), strict=True)):
            rows = [PlacedRow(row, self.tasks.index(t.task), number, advantage) for row in t.rows]
            parts = [rows] if self.whole_trajectories else [[row] for row in rows]
            pieces += [Piece(part, (t.task, t.group)) for part in parts if part]
        pieces.sort(key=lambda piece: piece.longest, reverse=True)
        if self.packed:
            place = {group: n for n, group in enumerate(dict.fromkeys(piece.group for piece in pieces))}
            pieces.sort(key=lambda piece: place[piece.group])
        return pieces

    def micro_batches(self, pieces: Sequence[Piece]) -> list[MicroBatch]:
        """Put each of the `pieces` into the first micro-batch that has room; if `packed`, to its group if possible."""
        found: list[MicroBatch] = []
        for piece in pieces:
            room = [batch for batch in found if self._with(batch, piece) <= self.micro_batch_tokens]
            mates = [batch for batch in room if self.packed and batch.pieces[-1].group == piece.group]
            if room:
                (mates or room)[0].add(piece)
            else:
                found.append(MicroBatch([piece], piece.longest))
        return found

    def _with(self, batch: MicroBatch, piece: Piece) -> int:
        """The tokens of the micro-batch if it took the piece."""
        return batch.tokens + piece.tokens if self.packed else (batch.rows + len(piece.rows)) * batch.width

    def batch(self, found: MicroBatch) -> TokenBatch:
        """The tensors of a micro-batch; its `global_tokens` are not known yet."""
        return _batch([row for piece in found.pieces for row in piece.rows], self.tasks, packed=self.packed)

    def without_tokens(self) -> TokenBatch:
        """A micro-batch without loss positions, for a rank with fewer of them than others: collectives must match."""
        nothing = np.zeros(0, np.int32)
        row = Row(ids=np.full(1, PAD_ID, np.int32), cols=nothing, logprobs=np.zeros(0, np.float32), turns=nothing,
                  positions=nothing)  # fmt: skip
        return _batch([PlacedRow(row, 0, 0, 0.0)], self.tasks, packed=self.packed)
