"""SIGTERM during a run: the message says that a rollout was lost if, and only if, one was."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from opdlight.callbacks import Checkpoints
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.losses import ImportanceWeighted, SupportMatching
from opdlight.run_folder.checkpoint_io import CheckpointFolder
from opdlight.run_folder.checkpoints import list_checkpoints
from opdlight.system.preemption import Preempted, Preemption
from tests.distillation.one_update import parts


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Stop(L.Callback):
    """The signal comes at the end of the second step, while the student is still busy."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.before = before

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.before()
            stop()


def lost(module: OnPolicyDistillation, data: L.LightningDataModule, folder: Path, *watch: L.Callback) -> bool:
    """Whether a run that is stopped by a signal says that a rollout is done again."""
    with Preemption() as preemption:
        module.source.preemption = preemption
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=1, callbacks=[*watch, Checkpoints(str(folder))], logger=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(folder), limit_val_batches=0,
            plugins=[CheckpointFolder()],
        )  # fmt: skip
        with pytest.raises(Preempted):  # noqa: PT012
            trainer.fit(module, datamodule=data)
            stop()  # after training
    return preemption.rollout_lost


def test_in_the_middle_of_a_rollout(folders: tuple[str, str], tmp_path: Path) -> None:
    calls = 0

    def answer(prompt: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == 12:  # of the second step
            stop()
        return [7, 8, 2]

    module, data, _ = parts(folders, answer=answer)
    assert lost(module, data, tmp_path)


def test_between_two_steps_and_after_the_last(folders: tuple[str, str], tmp_path: Path) -> None:
    module, data, _ = parts(folders)
    assert not lost(module, data, tmp_path / "between", Stop())
    module, data, _ = parts(folders)
    assert not lost(module, data, tmp_path / "after")


@pytest.mark.parametrize("finished", [True, False])
def test_the_rollout_ahead_is_kept_if_it_has_finished(finished: bool, folders: tuple[str, str], tmp_path: Path) -> None:
    module, data, engine = parts(folders, loss=ImportanceWeighted(loss=SupportMatching(k=8)), staleness=1)
    last = threading.Event()

    def steps(request: object) -> int:
        slow = last.is_set() and threading.current_thread().name.startswith("rollout")
        return 10**9 if slow and not finished else 1

    engine.steps = steps
    roll_out = module.roll_out

    def watched(requests: Any, step: int) -> Any:
        if step == 1:
            last.set()  # the one that follows does not end
        return roll_out(requests, step)

    module.roll_out = watched  # type: ignore[method-assign]
    assert lost(module, data, tmp_path, Stop(module.source.prefetch.wait if finished else lambda: None)) is not finished
    state = torch.load(list_checkpoints(tmp_path)[-1] / "state.pt", weights_only=True)
    assert ("prefetched" in state["source"]) is finished
    module.source.close()
