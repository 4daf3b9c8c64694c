"""What training in bfloat16 loses: its numbers have 8 significant bits, and smaller steps are rounded away."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from opdlight.errors import ConfigError
from opdlight.models.student import Student

LEAST = 0.5  # a model hardly trains if one step can move less than this share of its weights
PART = 1 << 22  # numbers at a time
BESIDE = "beside `model.student.lora` in bfloat16 (merged weights that are rounded to it lose small adapters)"


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


def needs_float32_engine(student: Student) -> bool:
    """True if bfloat16 weights have adapters.

    Merged they are float32 (`lora.merged_weights`); rounded to bfloat16 an adapter of 1e-4 would vanish.
    """
    return student.has_adapter and any(weight.dtype is torch.bfloat16 for weight in student.parameters())


def engine_dtype(engine: Mapping[str, Any]) -> tuple[str, str]:
    """The config key of an engine's dtype, also in a pool of engines, and its value; a server has none there."""
    key, node = ("engine.engine.dtype", engine["engine"]) if "engine" in engine else ("engine.dtype", engine)
    return key, str(node.get("dtype", "float32"))


def check_engine_dtype(student: Student, engine: Mapping[str, Any]) -> None:
    """Raise ConfigError if the engine that a config describes would round a student's adapters away."""
    key, dtype = engine_dtype(engine)
    if needs_float32_engine(student) and dtype != "float32":
        raise ConfigError.wrong(key, expected=f"float32 {BESIDE}", got=dtype)
