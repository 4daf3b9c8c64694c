"""Checkpoints in the run folder; a run that resumes from one continues as if it had never stopped."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from opdlight.bounds import PositiveInt
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.distillation.resumed_optimizer import follow_config
from opdlight.errors import ConfigError
from opdlight.models.student import Student
from opdlight.run_folder import records
from opdlight.run_folder.checkpoint_io import CheckpointFolder
from opdlight.run_folder.checkpoints import FOLDER, LAST, list_checkpoints
from opdlight.system.console import is_first_process
from opdlight.system.distributed import all_gather, of_first
from opdlight.system.lightning_internals import completed_steps
from opdlight.system.preemption import Preempted


class Checkpoints(Checkpoint):
    """Writes `checkpoints/step-…`: before the first step, after every so many, before each validation, at the end.

    With a `CheckpointFolder` as a plugin of the trainer it is written in the background. The next checkpoint, and the
    end of the training, however it ends, wait for it. What the first process finds on its disk decides for all.

    On SIGTERM or Ctrl-C another one is written and the run ends. A checkpoint that cannot be written (the disk is
    full) is reported at once and, when the next one begins, counted in `checkpoint/failed`; the run and its older
    checkpoints go on.

    Args:
        folder: the run folder.
        every: steps from one to the next.
        keep: so many are kept, so that a damaged one has a predecessor.
    """

    def __init__(self, folder: str, every: PositiveInt = 10, keep: PositiveInt = 2) -> None:
        self.run, self.every, self.keep = Path(folder), every, keep
        self.failed = 0

    def check_space(self, student: Student) -> None:
        """Raise ConfigError unless the disk has room for the checkpoints: weights, and two moments of what is trained.

        One more than `keep`, since the oldest goes only when the newest is there. The first process looks.
        """
        if not is_first_process():
            return
        trained = student.trainable_parameters()
        needed = (self.keep + 1) * sum(p.numel() * (p.element_size() + 2 * 4) for p in trained)
        needed += sum(p.numel() * p.element_size() for p in student.parameters())  # the student at the end
        free = shutil.disk_usage(self.run).free
        if free < needed:
            got = f"{free / 2**30:.2f} GiB free for checkpoints and student, which need {needed / 2**30:.2f}"
            expected = "on a disk with more room (or lower callbacks.checkpoints.keep)"
            raise ConfigError.wrong("run_dir", expected=expected, got=got)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Delete what a killed run left half written or half deleted."""
        if trainer.is_global_zero:
            self._tidy()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Follow the optimizer settings of the config; from here on a signal waits for the end of a step."""
        assert isinstance(pl_module, OnPolicyDistillation)
        follow_config(pl_module)
        pl_module.source.preemption.busy = True
        pl_module.source.preemption.listen()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write a checkpoint before a validation loop, which may take long, and handle signals within it."""
        assert isinstance(pl_module, OnPolicyDistillation)
        pl_module.source.preemption.listen()
        if trainer.state.fn == TrainerFn.FITTING:
            self.save(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write the state after `batch_idx` steps; raise Preempted on every rank if one of them got a signal."""
        assert isinstance(pl_module, OnPolicyDistillation)
        if asked := max(all_gather(pl_module.source.preemption.number if pl_module.source.preemption.asked else 0)):
            raise Preempted(between_steps=True, number=asked)
        if batch_idx % self.every == 0:
            self.save(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log how many checkpoints could not be written."""
        pl_module.log("checkpoint/failed", float(self.failed))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the checkpoint of a finished run, with the results of its last evaluation."""
        assert isinstance(pl_module, OnPolicyDistillation)
        pl_module.source.preemption.busy = False
        self.save(trainer, LAST)
        self.wait(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write a checkpoint when SIGTERM or Ctrl-C ends the run between two steps; else complete the one before."""
        if isinstance(exception, Preempted) and exception.between_steps:
            self.save(trainer)
            self.wait(trainer)
        elif isinstance(io := trainer.strategy.checkpoint_io, CheckpointFolder):
            io.wait()  # perhaps on this rank alone

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the lengths of the run folder's records, to which a resume cuts them."""
        checkpoint["records"] = records.lengths(self.run)

    def save(self, trainer: L.Trainer, suffix: str = "") -> None:
        """Begin to write the checkpoint of this step, unless it exists, when the one before is written."""
        self.wait(trainer)
        path = self.run / FOLDER / f"step-{completed_steps(trainer):08d}{suffix}"
        if not of_first(path.exists()):
            trainer.save_checkpoint(path)

    def wait(self, trainer: L.Trainer) -> None:
        """Wait for the checkpoint that was begun; count it if it failed; delete all but the newest `keep`."""
        io = trainer.strategy.checkpoint_io
        if isinstance(io, CheckpointFolder) and not of_first(io.wait()):
            self.failed += 1
        if trainer.is_global_zero:
            self._tidy()

    def _tidy(self) -> None:
        for left in [*(self.run / FOLDER).glob(".step-*"), *list_checkpoints(self.run)[: -self.keep]]:
            CheckpointFolder().remove_checkpoint(left)
