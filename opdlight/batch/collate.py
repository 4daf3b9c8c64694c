"""Trajectories → micro-batches of tokens: the one place that shifts, masks, pads and flattens."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev

import torch

from opdlight.batch.split import with_global_tokens
from opdlight.types import SharedVocabulary, TokenBatch, Trajectory

PAD_ID = 0  # arbitrary: padding is never attended to and never a loss position


@dataclass(slots=True)
class _Row:
    """One training row; the lists `cols` … `positions` have one entry for each of its loss positions."""

    ids: list[int]
    advantage: float = 0.0
    cols: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)


def _rows(trajectory: Trajectory, loss_mask: Callable[[list[int]], list[bool]], shared: SharedVocabulary) -> list[_Row]:
    """Merge turns into rows: a prompt that starts with all tokens of the last row extends it, any other begins one."""
    rows: list[_Row] = []
    produced = 0
    for number, turn in enumerate(trajectory.turns):
        if not turn.prompt_ids:
            raise ValueError("Expected `Turn.prompt_ids` to hold at least one token, but got none.")
        if rows and turn.prompt_ids[: len(rows[-1].ids)] == rows[-1].ids:
            row = rows[-1]
            row.ids = list(turn.prompt_ids)
        else:
            row = _Row(ids=list(turn.prompt_ids))
            rows.append(row)
        keep = loss_mask(turn.completion_ids)
        for i, (token, logprob) in enumerate(zip(turn.completion_ids, turn.sampled_logprobs, strict=True)):
            if keep[i] and token in shared:
                row.cols.append(len(row.ids) + i - 1)  # the shift: this hidden state predicts `token`
                row.targets.append(token)
                row.logprobs.append(logprob)
                row.turns.append(number)
                row.positions.append(produced + i)
        produced += len(turn.completion_ids)
        row.ids.extend(turn.completion_ids)
    return rows


def count_splits(trajectory: Trajectory) -> int:
    """The number of extra training rows of a trajectory, one for each time that its rendered history was rewritten."""
    return max(len(_rows(trajectory, lambda ids: [True] * len(ids), SharedVocabulary(1 << 62))) - 1, 0)


def _batch(trajectories: list[tuple[int, list[_Row]]], tasks: tuple[str, ...]) -> TokenBatch:
    rows = [(task, trajectory, row) for trajectory, (task, rs) in enumerate(trajectories) for row in rs]
    longest = max(len(row.ids) for _, _, row in rows)
    input_ids = torch.full((len(rows), longest), PAD_ID, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), longest), dtype=torch.bool)
    for b, (_, _, row) in enumerate(rows):
        input_ids[b, : len(row.ids)] = torch.tensor(row.ids)
        attention_mask[b, : len(row.ids)] = True
    positions = torch.arange(longest).expand(len(rows), -1)

    def flat(values: Callable[[int, int, int, _Row], list[int] | list[float]], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([v for b, (k, j, r) in enumerate(rows) for v in values(b, k, j, r)], dtype=dtype)

    return TokenBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=positions * attention_mask,
        row_index=flat(lambda b, k, j, r: [b] * len(r.cols), torch.long),
        col_index=flat(lambda b, k, j, r: r.cols, torch.long),
        target_ids=flat(lambda b, k, j, r: r.targets, torch.long),
        sampled_logprobs=flat(lambda b, k, j, r: r.logprobs, torch.float32),
        turn_index=flat(lambda b, k, j, r: r.turns, torch.long),
        token_position=flat(lambda b, k, j, r: r.positions, torch.long),
        trajectory_index=flat(lambda b, k, j, r: [j] * len(r.cols), torch.long),
        task_index=flat(lambda b, k, j, r: [k] * len(r.cols), torch.long),
        group_advantage=flat(lambda b, k, j, r: [r.advantage] * len(r.cols), torch.float32),
        tasks=tasks,
        global_tokens=0,
    )


def group_advantages(trajectories: Sequence[Trajectory]) -> list[float]:
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
    """Splits trajectories into micro-batches of at most `micro_batch_tokens` padded tokens, of similar lengths each.

    Rows without a loss position (empty completion, all tokens masked) are left out. A trajectory is never split between
    micro-batches, so that a loss can sum along it; one that exceeds the budget is a micro-batch by itself. The
    `global_tokens` of every micro-batch is the number of loss positions of all of them.
    """

    tasks: tuple[str, ...]
    shared: SharedVocabulary  # other tokens carry no loss
    micro_batch_tokens: int = 8192
    loss_mask: Callable[[list[int]], list[bool]] = keep_all  # completion ids [C] → which of them are trained on [C]

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[TokenBatch]:
        """Micro-batches, those with the longest rows first, so that running out of memory shows early; may be empty."""
        pieces: list[tuple[int, list[_Row]]] = []
        for trajectory, advantage in zip(trajectories, group_advantages(trajectories), strict=True):
            rows = [r for r in _rows(trajectory, self.loss_mask, self.shared) if r.cols]
            for row in rows:
                row.advantage = advantage
            if rows:
                pieces.append((self.tasks.index(trajectory.task), rows))
        pieces.sort(key=lambda piece: max(len(r.ids) for r in piece[1]), reverse=True)

        groups: list[list[tuple[int, list[_Row]]]] = []
        rows_in_group, width = 0, 0
        for piece in pieces:
            if groups and (rows_in_group + len(piece[1])) * width <= self.micro_batch_tokens:
                groups[-1].append(piece)
                rows_in_group += len(piece[1])
            else:  # sorted by length: the first piece of a group determines its padded width
                groups.append([piece])
                rows_in_group, width = len(piece[1]), max(len(r.ids) for r in piece[1])
        return with_global_tokens([_batch(group, self.tasks) for group in groups])


def without_tokens(tasks: tuple[str, ...]) -> TokenBatch:
    """A micro-batch without loss positions, for a rank with fewer micro-batches than others: collectives must match."""
    return with_global_tokens([_batch([(0, [_Row(ids=[PAD_ID])])], tasks)], 0)[0]
