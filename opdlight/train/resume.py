"""Resuming a run from its newest checkpoint."""

import math
from pathlib import Path

import lightning as L
from omegaconf import DictConfig

from opdlight.errors import ConfigError
from opdlight.run_folder import checkpoints, records
from opdlight.run_folder.summary import SUMMARY, is_complete
from opdlight.system.console import is_first_process, say
from opdlight.system.distributed import all_gather


def batches(cfg: DictConfig) -> int:
    """How many rollouts make `trainer.max_steps` updates."""
    return math.ceil(cfg.trainer.max_steps / cfg.rollout.mini_batches)


def newest_checkpoint(cfg: DictConfig) -> Path | None:
    """The checkpoint that the run resumes from; None for a new run and for one that has none yet.

    Raises:
        CheckpointError: if no checkpoint of the folder is sound.
        ConfigError: if the run has done more updates than `trainer.max_steps` allows now, or if a new run would write
            into a folder that holds checkpoints.
    """
    if not cfg.resume:
        if is_first_process() and checkpoints.list_checkpoints(Path(cfg.run_dir)):
            expected = "a folder without checkpoints, or `resume` it"
            raise ConfigError.wrong("run_dir", expected=expected, got=str(cfg.run_dir))
        return None
    checkpoint = checkpoints.newest(Path(cfg.run_dir).absolute(), first=is_first_process())
    done = checkpoints.steps_of(checkpoint) if checkpoint else 0
    if batches(cfg) < done:
        expected = f"at least {done * cfg.rollout.mini_batches}, the updates that {cfg.resume} has done"
        raise ConfigError.wrong("trainer.max_steps", expected=expected, got=cfg.trainer.max_steps)
    return checkpoint


def prepare_folder(cfg: DictConfig, folder: Path, checkpoint: Path | None) -> bool:
    """Cut the records of a resumed run back to its checkpoint and say what happens; False if nothing is left to do."""
    if not cfg.resume:
        say(f"run folder: {folder}")  # before anything slow, so that each of several runs can be watched
        return True
    trained = (
        checkpoint is not None and checkpoints.is_last(checkpoint) and checkpoints.steps_of(checkpoint) == batches(cfg)
    )
    if trained and is_complete(folder, teachers=cfg.evaluate_teachers):
        say(f"nothing to do: {folder} has done its {cfg.trainer.max_steps} updates (trainer.max_steps)")
        return False
    if is_first_process():
        records.truncate(folder, checkpoints.read_manifest(checkpoint)["records"] if checkpoint else {})
        (folder / SUMMARY).unlink(missing_ok=True)  # of a run that was shorter
    if trained:
        say(f"nothing to train: {folder} has done its {cfg.trainer.max_steps} updates; its end is done again")
    elif checkpoint:
        say(f"resuming {folder} after step {checkpoints.steps_of(checkpoint)}")
    else:
        say(f"resuming {folder} at the start: it has no checkpoint yet")
    return True


class SameStart(L.Callback):
    """Ends the run when the processes have met and do not start from the same checkpoint.

    Each has looked for it before there was a group of processes. Otherwise they would wait for one another forever:
    one of them to evaluate a new run, another to go on.

    Args:
        run: the run folder.
        checkpoint: what this process found there.
    """

    def __init__(self, run: Path, checkpoint: Path | None) -> None:
        self.run, self.found = run, checkpoint.name if checkpoint else None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compare."""
        found = all_gather(self.found)
        for rank, name in enumerate(found):
            if name != found[0]:
                expected = (
                    f"on a disk that all machines share, so that every process resumes from {found[0] or 'the start'} "
                    f"as the first one does"
                )
                raise ConfigError.wrong("run_dir", expected=expected, got=f"{self.run}; rank {rank} finds {name}")
