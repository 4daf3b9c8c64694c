"""A progress bar that shows what the step is doing."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

from opdlight.bounds import PositiveInt
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.system.console import ProgressLine, say
from opdlight.system.lightning_internals import completed_steps


class StageProgress(ProgressBar):
    """Two lines: updates with loss, reward and coverage; below, what the step is doing and its finished trajectories.

    Without a terminal (a log file) it prints one plain line each `every` rollouts instead.
    """

    def __init__(self, every: PositiveInt = 5) -> None:
        super().__init__()
        self.every = every
        self.updates: ProgressLine | None = None
        self.part: ProgressLine | None = None  # of a step or an evaluation

    def disable(self) -> None:
        """Does nothing; Lightning calls it on every rank but the first, and those print nothing anyway."""

    @property
    def is_enabled(self) -> bool:
        """Whether `LightningModule.print` goes through `print` below."""
        return True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """A line above the bars."""
        say(" ".join(map(str, args)))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Follow the rollouts and the timer of the module."""
        super().setup(trainer, pl_module, stage)
        if isinstance(pl_module, OnPolicyDistillation):
            pl_module.source.on_progress = lambda finished, total: self._progress(pl_module.timer.name, finished, total)
            pl_module.timer.on_change = self._changed

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the number of updates, and how many a resumed run has done."""
        each = _updates_of_a_rollout(pl_module)
        total = each * int(trainer.num_training_batches)
        if self.updates is None:
            self.updates = ProgressLine("updates", total, log=False)
        self.updates.update(min(each * completed_steps(trainer), total), total)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance, with the figures of this rollout and its updates."""
        each = _updates_of_a_rollout(pl_module)
        done, total = each * (batch_idx + 1), each * int(trainer.num_training_batches)
        pairs = [f"{name} {value:.3f}" for name, value in trainer.progress_bar_metrics.items()
                 if isinstance(value, float)]  # fmt: skip
        if self.updates:
            self.updates.update(done, figures=pairs)
        if not (self.updates and self.updates.shown) and (batch_idx % self.every == 0 or done == total):
            say("  ".join([f"update {done}/{total}", *pairs]))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove both lines, also after an exception."""
        for line in (self.part, self.updates):
            if line:
                line.end()
        self.part = self.updates = None

    def _progress(self, name: str, finished: int, total: int) -> None:
        if self.part is None or self.part.title != name:
            self._changed(name)
        if self.part:
            self.part.update(finished, total)

    def _changed(self, name: str) -> None:
        """Show the part of the step that has begun. Without a terminal only evaluations get a line."""
        if not name:
            return
        if self.part is None or (name.startswith("evaluate") and not self.part.shown and self.part.title != name):
            self.part = ProgressLine(name, log=name.startswith("evaluate"))
        elif self.part.title != name:
            self.part.restart(name)


def _updates_of_a_rollout(module: L.LightningModule) -> int:
    """A batch of Lightning's is a rollout, which makes `rollout.mini_batches` updates."""
    return module.mini_batches if isinstance(module, OnPolicyDistillation) else 1
