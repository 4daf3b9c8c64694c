"""Splits trajectories into mini-batches, and micro-batches that do not fit into memory into smaller ones."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from opdlight.batch.rows import TrajectoryRows
from opdlight.errors import TrainingError
from opdlight.types import TokenBatch, Trajectory

OfGroup = TypeVar("OfGroup", Trajectory, TrajectoryRows)


def halved(batches: Sequence[TokenBatch], budget: int, *, whole_trajectories: bool) -> tuple[list[TokenBatch], int]:
    """Split micro-batches so that each has at most half as many tokens, and return them with the new budget.

    `global_tokens` stays the same.

    Args:
        batches: micro-batches.
        budget: most tokens of a micro-batch so far, counted as `TokenBatch.model_tokens`.
        whole_trajectories: the loss needs the rows of a trajectory together.

    Raises:
        TrainingError: if each of them is a single row, or trajectory if it must stay whole: those are never split.
    """
    largest = min(budget, max(b.model_tokens for b in batches))
    found = [part for batch in batches for part in _within(batch, largest // 2, whole_trajectories)]
    if len(found) == len(batches):
        smallest, why = ("trajectory", ", which the loss needs whole") if whole_trajectories else ("row", "")
        raise TrainingError(
            f"Out of memory with one {smallest} a micro-batch ({largest} tokens{why}). Lower trajectory_tokens of the "
            "task, or engine.gpu_memory_utilization, or set model.student.gradient_checkpointing=true."
        )
    return found, largest // 2


def _within(batch: TokenBatch, budget: int, whole_trajectories: bool) -> list[TokenBatch]:
    piece = batch.trajectory_index if whole_trajectories else batch.row_index
    pieces = piece.unique()
    if batch.model_tokens <= budget or len(pieces) < 2:
        return [batch]
    first = torch.isin(piece, pieces[: len(pieces) // 2])
    parts = [at_positions(batch, chosen.nonzero().squeeze(1)) for chosen in (first, ~first)]
    return [smaller for part in parts for smaller in _within(part, budget, whole_trajectories)]


def with_global_tokens(batches: list[TokenBatch], total: int | None = None) -> list[TokenBatch]:
    """The batches with `global_tokens` set to `total`; by default to the sum of their loss positions."""
    total = sum(b.num_tokens for b in batches) if total is None else total
    return [replace(b, global_tokens=total) for b in batches]


def in_parts(trajectories: Sequence[OfGroup], parts: int) -> list[list[OfGroup]]:
    """Divide trajectories into `parts` lists without splitting a group; some are empty if there are fewer groups."""
    groups = list(dict.fromkeys((t.task, t.group) for t in trajectories))
    shares = [set(groups[i::parts]) for i in range(parts)]
    return [[t for t in trajectories if (t.task, t.group) in share] for share in shares]


def at_positions(batch: TokenBatch, at: Tensor) -> TokenBatch:
    """The batch with the loss positions `at` [n] only, and with only the rows and columns that those need."""
    rows, row_index = torch.unique(batch.row_index[at], return_inverse=True)
    columns = int(batch.attention_mask[rows].sum(1).max())
    flat = (
        "col_index",
        "target_ids",
        "sampled_logprobs",
        "turn_index",
        "token_position",
        "trajectory_index",
        "task_index",
        "group_advantage",
    )
    found = {name: getattr(batch, name)[at] for name in flat}
    if batch.rollout_logprobs is not None:
        found["rollout_logprobs"] = batch.rollout_logprobs[at]
    wide = ("input_ids", "attention_mask", "position_ids")
    return replace(
        batch,
        row_index=row_index,
        **found,
        **{name: getattr(batch, name)[rows, :columns] for name in wide},
    )
