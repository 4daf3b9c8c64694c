"""A progress bar that shows what the step is doing."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from opdlight.module import OnPolicyDistillation


class StageProgress(ProgressBar):
    """Two lines: updates with loss, reward and coverage; below, the stage and its finished trajectories.

    Without a terminal (a log file) it prints one plain line each `every` updates instead.
    """

    def __init__(self, every: int = 5) -> None:
        super().__init__()
        self.every = every
        self.console = Console()
        self.bar: Progress | None = None
        self.updates = self.stage = TaskID(0)
        self.module: OnPolicyDistillation | None = None

    def disable(self) -> None:
        """Lightning calls this on every rank but the first."""
        self.console = Console(quiet=True)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listen to the rollouts and draw the bar."""
        super().setup(trainer, pl_module, stage)
        assert isinstance(pl_module, OnPolicyDistillation)
        self.module = pl_module
        pl_module.on_progress = self._progress
        if self.console.is_terminal and self.bar is None:
            columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
            self.bar = Progress(
                *columns,
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
            )
            self.updates = self.bar.add_task("updates", total=None, note="", visible=False)  # on_train_start knows more
            self.stage = self.bar.add_task("starting", total=None, note="")
            self.bar.start()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The number of updates is known now."""
        if self.bar:
            self.bar.update(self.updates, total=trainer.num_training_batches, visible=True)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance, with the figures of this update."""
        note = self._note(trainer)
        if self.bar:
            self.bar.update(self.updates, completed=batch_idx + 1, note=note)
        elif batch_idx % self.every == 0 or batch_idx + 1 == trainer.num_training_batches:
            self.console.print(f"update {batch_idx + 1}/{trainer.num_training_batches}  {note}", soft_wrap=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the terminal back, also after an exception."""
        if self.bar:
            self.bar.stop()
            self.bar = None

    def _progress(self, finished: int, total: int) -> None:
        if self.bar and self.module:
            self.bar.update(self.stage, description=self.module.stage.name, completed=finished, total=total)

    def _note(self, trainer: L.Trainer) -> str:
        shown = trainer.progress_bar_metrics
        return "  ".join(f"{name} {value:.3f}" for name, value in shown.items() if isinstance(value, float))
