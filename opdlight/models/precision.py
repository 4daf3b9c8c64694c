"""What weights stored in bfloat16 lose: they have 8 significant bits, and smaller steps are rounded away.

Forward passes in bfloat16 lose nothing of that: see `Student`, whose weights stay float32.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from opdlight.models.student import Student

LEAST = 0.5  # a model hardly trains if one step can move less than this share of its weights
PART = 1 << 22  # numbers at a time


@torch.no_grad()
def movable(weights: Iterable[Tensor], step: float) -> float:
    """The share of numbers that `step` up or down changes, once the sum is rounded to their own dtype.

    >>> one, small = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([2.0**-8], dtype=torch.bfloat16)
    >>> movable([one, small], 1e-4), movable([one, small], 1e-2), movable([one.float()], 1e-4)
    (0.5, 1.0, 1.0)
    """
    moved = total = 0
    for weight in weights:
        for part in weight.detach().flatten().split(PART):
            for to in (step, -step):
                moved += int((part.double().add(to).to(part.dtype) != part).sum())
            total += 2 * part.numel()
    return moved / max(total, 1)


def bfloat16_share(student: Student, learning_rate: float) -> float | None:
    """The share of the trained bfloat16 weights that one step of Adam can move; None if no such weight is trained.

    Adam's steps are about as large as the learning rate, whatever the gradient.
    """
    weights = [w for w in student.trainable_parameters() if w.dtype is torch.bfloat16]
    return movable(weights, learning_rate) if weights else None


def lost(share: float, learning_rate: float) -> str:
    """The sentence for the user about a share found by `bfloat16_share`."""
    return (
        f"one step of the learning rate {learning_rate:g} can move {100 * share:.1f} % of the trained bfloat16 weights"
        "; for the others it is less than half a unit in the last place (about |w|/512) and is rounded away"
    )


def engine_dtype(engine: Mapping[str, Any]) -> str | None:
    """The dtype of an engine in its config node, also in that of a pool of engines; None for a server, which knows."""
    found = engine.get("engine", engine).get("dtype")
    return None if found is None else str(found)
