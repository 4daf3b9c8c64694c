"""The optimizer of a config."""

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig
from torch.optim import Optimizer

from opdlight.config import instantiate
from opdlight.errors import ConfigError
from opdlight.models import Student
from opdlight.models.precision import LEAST, bfloat16_share, lost
from opdlight.system.console import say


def make_optimizer(cfg: DictConfig, student: Student) -> Callable[[Any], Optimizer]:
    """Parameters → optimizer, tried once: a value that it refuses is reported now and not when training starts."""
    make: Callable[[Any], Optimizer] = instantiate(cfg.optimizer)
    try:
        make(student.trainable_parameters())
    except ValueError as error:
        raise ConfigError(f"Cannot build `optimizer`: {error}") from error
    _check_steps(cfg, student)
    return make


def _check_steps(cfg: DictConfig, student: Student) -> None:
    """Refuse a learning rate that bfloat16 weights would not follow; where many do, the doctor warns, or this does."""
    lr, target = cfg.optimizer.get("lr"), str(cfg.optimizer.get("_target_"))
    share = None if lr is None else bfloat16_share(student, lr)
    if share is None:
        return
    if share < LEAST and target.startswith("torch.optim.") and "Adam" in target:
        raise ConfigError.wrong("model.dtype", expected=f"float32, because {lost(share, lr)}", got="bfloat16")
    if not cfg.get("doctor", False):
        say(f"warning: {lost(share, lr)}. model.dtype=float32 loses nothing.")
