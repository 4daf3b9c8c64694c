"""Micro-batches that did not fit into memory, in smaller ones."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from opdlight.collate import at_positions
from opdlight.errors import TrainingError
from opdlight.types import TokenBatch


def is_out_of_memory(error: RuntimeError) -> bool:
    """Is it a lack of memory, on a GPU or on the CPU?"""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def halved(batches: Sequence[TokenBatch], budget: int) -> tuple[list[TokenBatch], int]:
    """The same micro-batches in ones of half the padded tokens, and that budget; `global_tokens` stay.

    Raises:
        TrainingError: if each of them is a single trajectory, which is never divided.
    """
    had = min(budget, max(b.input_ids.numel() for b in batches))
    found = [part for batch in batches for part in _within(batch, had // 2)]
    if len(found) == len(batches):
        raise TrainingError(
            f"Out of memory with one trajectory a micro-batch ({had} tokens). Lower trajectory_tokens of the task, "
            "or engine.gpu_memory_utilization, or set model.student.gradient_checkpointing=true."
        )
    return found, had // 2


def _within(batch: TokenBatch, budget: int) -> list[TokenBatch]:
    trajectories = batch.trajectory_index.unique()
    if batch.input_ids.numel() <= budget or len(trajectories) < 2:
        return [batch]
    first = torch.isin(batch.trajectory_index, trajectories[: len(trajectories) // 2])
    parts = (at_positions(batch, chosen.nonzero().squeeze(1)) for chosen in (first, ~first))
    return [smaller for part in parts for smaller in _within(replace(part, global_tokens=batch.global_tokens), budget)]
