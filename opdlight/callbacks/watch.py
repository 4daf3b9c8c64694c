"""What the callbacks that read tokens have in common."""

from typing import Any

import lightning as L

from opdlight.reading import Reading


class TokenWatch(L.Callback):
    """Collects the readings of one step and logs `figures` of each task under `<figure>/<task>` when it ends."""

    def __init__(self) -> None:
        self.readings: list[Reading] = []

    def figures(self, seen: Reading) -> dict[str, float]:
        """Key without the task → value, from all that was read of one task in this step."""
        raise NotImplementedError

    def on_reading(self, module: L.LightningModule, reading: Reading) -> None:
        """Keep it until the step ends."""
        self.readings.append(reading)

    def by_task(self) -> dict[str, Reading]:
        """What was read since the last call, task by task."""
        if not self.readings:
            return {}
        seen = Reading.join(self.readings)
        self.readings = []
        return {seen.tasks[i]: seen.where(seen.task == i) for i in seen.task.unique().tolist()}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the figures of this step."""
        for task, seen in self.by_task().items():
            for name, value in self.figures(seen).items():
                pl_module.log(f"{name}/{task}", value, prog_bar=name == "coverage/student_mass")
