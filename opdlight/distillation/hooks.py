"""What a callback may have beside Lightning's hooks."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from opdlight.types import Trajectory


@runtime_checkable
class UsesProbe(Protocol):
    """A callback that needs what the probe found in a step; without one nothing is probed."""

    uses_probe: bool


@runtime_checkable
class WatchesRollouts(Protocol):
    """A callback that wants to see trajectories before the student learns from them."""

    def on_trajectories(self, module: Any, trajectories: Sequence[Trajectory], stage: Literal["train", "val"]) -> None:
        """Called after each rollout, for training and for validation."""
