"""A run that goes on from its newest checkpoint."""

import math
from pathlib import Path

from omegaconf import DictConfig

from opdlight.errors import ConfigError
from opdlight.run_folder import checkpoints, records
from opdlight.run_folder.summary import SUMMARY, is_complete
from opdlight.system.console import say


def batches(cfg: DictConfig) -> int:
    """How many rollouts make `trainer.max_steps` updates."""
    return math.ceil(cfg.trainer.max_steps / cfg.rollout.mini_batches)


def check_steps(cfg: DictConfig, checkpoint: Path) -> None:
    """Raise ConfigError if the run has done more updates than `trainer.max_steps` allows now."""
    done = checkpoints.steps_of(checkpoint)
    if batches(cfg) < done:
        expected = f"at least {done * cfg.rollout.mini_batches}, the updates that {cfg.resume} has done"
        raise ConfigError.wrong("trainer.max_steps", expected=expected, got=cfg.trainer.max_steps)


def go_on(cfg: DictConfig, folder: Path, checkpoint: Path | None, *, first: bool) -> bool:
    """Wind the records back to the checkpoint and say where the run goes on; False if nothing is left to do."""
    over = (
        checkpoint is not None and checkpoints.is_last(checkpoint) and checkpoints.steps_of(checkpoint) == batches(cfg)
    )
    if over and is_complete(folder, teachers=cfg.evaluate_teachers):
        say(f"nothing to do: {folder} has done its {cfg.trainer.max_steps} updates (trainer.max_steps)")
        return False
    if first:
        records.truncate(folder, checkpoints.read_manifest(checkpoint)["records"] if checkpoint else {})
        (folder / SUMMARY).unlink(missing_ok=True)  # of a run that was shorter
    if over:
        say(f"nothing to train: {folder} has done its {cfg.trainer.max_steps} updates; its end is done again")
    else:
        where = (
            f"after step {checkpoints.steps_of(checkpoint)}" if checkpoint else "at the start: it has no checkpoint yet"
        )
        say(f"{folder} goes on {where}")
    return True
