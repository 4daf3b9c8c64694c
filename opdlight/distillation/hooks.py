"""What a callback may have beside Lightning's hooks."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import lightning as L

from opdlight.types import Trajectory


@runtime_checkable
class UsesProbe(Protocol):
    """A callback that needs what the probe found in a step; without one nothing is probed."""

    uses_probe: bool


@runtime_checkable
class WatchesRollouts(Protocol):
    """A callback that wants to see trajectories before the student learns from them."""

    def on_trajectories(self, module: Any, trajectories: Sequence[Trajectory], stage: Literal["train", "val"]) -> None:
        """Called after each rollout, for training and for validation, with those of this rank."""


def uses_probe(trainer: L.Trainer) -> bool:
    """Does a callback need what the probe finds?"""
    return any(isinstance(callback, UsesProbe) for callback in trainer.callbacks)  # type: ignore[attr-defined]


def show_trajectories(
    trainer: L.Trainer, module: L.LightningModule, trajectories: Sequence[Trajectory], stage: Literal["train", "val"]
) -> None:
    """Call `on_trajectories` of every callback that has it."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WatchesRollouts):
            callback.on_trajectories(module, trajectories, stage)
