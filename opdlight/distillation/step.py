"""The record of one training step."""

from collections.abc import Sequence
from dataclasses import dataclass

from opdlight.models.probe import ProbeResult
from opdlight.types import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What the callbacks get of a training step: `outputs["step"]` in `on_train_batch_end`.

    A LightningModule with a training step of its own returns `{"loss": loss, "step": Step(readings=...)}`.
    """

    readings: Sequence[ProbeResult] = ()  # of all ranks
    trajectories: Sequence[Trajectory] = ()  # of this rank
    loss_tokens: int = 0  # of all ranks and updates
    shares: Sequence[Sequence[float]] = ()  # update by update: each micro-batch's part of the loss tokens of all ranks
    version: int = 0  # updates that the student had had before this step
    not_finite: int = 0  # updates of this step that were skipped because loss or gradient was not finite
