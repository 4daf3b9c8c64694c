"""The records of a training step and of its updates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from opdlight.models.probe import ProbeResult
from opdlight.types import TokenBatch, Trajectory


class Update(NamedTuple):
    """One update of this rank."""

    loss: Tensor  # summed over the loss tokens of this rank, divided by those of all ranks; detached
    batches: Sequence[TokenBatch]  # its micro-batches, as they fitted into memory
    probes: list[ProbeResult]  # of its micro-batches, for the callbacks


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What the callbacks get of a training step: `outputs["step"]` in `on_train_batch_end`.

    A LightningModule with a training step of its own returns `{"loss": loss, "step": Step(probes=...)}`.
    """

    probes: Sequence[ProbeResult] = ()  # of all ranks
    trajectories: Sequence[Trajectory] = ()  # of this rank
    loss_tokens: int = 0  # of all ranks and updates
    shares: Sequence[Sequence[float]] = ()  # update by update: each micro-batch's part of the loss tokens of all ranks
    rank_tokens: Sequence[int] = ()  # rank by rank: `model_tokens` of its micro-batches in this step
    version: int = 0  # updates that the student had had before this step
    not_finite: int = 0  # updates of this step that were skipped because loss or gradient was not finite
