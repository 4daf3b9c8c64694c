"""What the callbacks that use the probe have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import lightning as L

from opdlight.models.probe import ProbeResult


class ProbeCallback(L.Callback, ABC):
    """Logs `figures` of each task under `<figure>/<task>` when a step ends, from what the probe found in it."""

    uses_probe = True

    @abstractmethod
    def figures(self, seen: ProbeResult) -> dict[str, float]:
        """Key without the task → value, from all probed positions of one task in this step."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the figures of this step."""
        for task, seen in by_task(outputs["step"].probes).items():
            for name, value in self.figures(seen).items():
                pl_module.log(f"{name}/{task}", value, prog_bar=name == "coverage/student_mass")


def by_task(results: Sequence[ProbeResult]) -> dict[str, ProbeResult]:
    """The probed positions of all micro-batches [n], task by task."""
    if not results:
        return {}
    seen = ProbeResult.join(results)
    return {seen.tasks[i]: seen.where(seen.task == i) for i in seen.task.unique().tolist()}
