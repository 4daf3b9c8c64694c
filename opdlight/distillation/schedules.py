"""Factors on the learning rate by update."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch

from opdlight.bounds import NonNegativeInt, PositiveInt


def learning_rate(
    kind: Literal["constant", "cosine"], *, warmup: NonNegativeInt, updates: PositiveInt
) -> Callable[[int], float]:
    """Factor on the learning rate by update: linear warm-up, then `constant`, or `cosine` down to 0 at `updates`."""
    return partial({"constant": _constant, "cosine": _cosine}[kind], warmup, updates)


def constant(update: int) -> float:
    """The learning rate as it is, without warm-up."""
    return 1.0


def _constant(warmup: int, updates: int, step: int) -> float:
    return min(1.0, (step + 1) / (warmup + 1))


def _cosine(warmup: int, updates: int, step: int) -> float:
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(updates - warmup, 1)
    return 0.5 * (1.0 + float(torch.cos(torch.tensor(min(done, 1.0) * torch.pi))))
