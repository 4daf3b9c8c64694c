"""Every use of what Lightning keeps private, behind named functions.

`tests/system/test_lightning_internals.py` holds each of them against the installed release.
"""

from typing import Any

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

KNOWN = "2.6"  # the release of Lightning that these functions were written for


def completed_steps(trainer: L.Trainer) -> int:
    """How many training batches are done, those before a resume included."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.completed


def processed_steps(trainer: L.Trainer) -> int:
    """How many training batches have changed the state: one more than `completed_steps` in `on_train_batch_end`."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]


def forget_logged(trainer: L.Trainer) -> None:
    """Drop the figures of the step before: Lightning would log them again in a step that does not log them."""
    trainer.fit_loop._results.reset()


def logged_in_step(trainer: L.Trainer) -> dict[str, float]:
    """What this training step has logged so far; `trainer.logged_metrics` keeps what older steps logged."""
    metrics = trainer.fit_loop._results.metrics(on_step=True)
    return {key: float(value) for key, value in metrics["callback"].items()}


def set_logging_step(trainer: L.Trainer, step: int) -> None:
    """Let loggers get `step` as the number of this batch: Lightning counts from 0 again in a resumed run."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def set_between_steps(checkpoint: dict[str, Any], *, validating: bool) -> None:
    """Let a checkpoint be the state before the step, or the validation loop, that has begun but changed nothing yet.

    Args:
        checkpoint: Lightning's, changed in place.
        validating: a validation loop is running. Lightning starts one again that was left in its first batch.
    """
    loops = checkpoint["loops"]["fit_loop"]
    for which in ("total", "current"):
        step = loops["epoch_loop.batch_progress"][which]
        step.update(dict.fromkeys(("ready", "started", "completed"), step["processed"]))
        if validating:
            loops["epoch_loop.val_loop.batch_progress"][which].update(ready=1, started=1, processed=0, completed=0)


def reopen_training(checkpoint: dict[str, Any], steps: int) -> None:
    """Let a checkpoint of a finished training loop train on, if more `steps` are wanted than it has completed."""
    loops = checkpoint["loops"]["fit_loop"]
    if loops["epoch_loop.batch_progress"]["current"]["completed"] >= steps:
        return
    loops["epoch_loop.batch_progress"]["is_last_batch"] = False
    for which in ("total", "current"):
        loops["epoch_progress"][which].update(ready=1, started=1, processed=0, completed=0)


def unwrapped(optimizer: Any) -> Optimizer:
    """Torch's optimizer inside the one that Lightning hands out."""
    return getattr(optimizer, "_optimizer", optimizer)


def shard_over_all(strategy: ModelParallelStrategy) -> None:
    """Let the strategy divide a model over all processes of all machines; call it before its environment is set up."""
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes


def set_mesh(strategy: ModelParallelStrategy, mesh: DeviceMesh) -> None:
    """Let the module of a strategy have this mesh as its `device_mesh`; call it after its environment is set up."""
    assert strategy.lightning_module is not None
    strategy.lightning_module._device_mesh = mesh
