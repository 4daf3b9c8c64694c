"""An optimizer that a config describes, tried before training starts."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from opdlight.errors import ConfigError
from opdlight.models import Student
from opdlight.models.precision import LEAST, bfloat16_share, lost
from opdlight.system.console import say


def check_optimizer(make: Callable[[Any], Optimizer], student: Student, *, warn: bool) -> None:
    """Make the optimizer once, so that what it refuses is reported before anything is rolled out.

    Args:
        make: parameters → optimizer.
        student: what it would train.
        warn: True prints a warning where a step of the learning rate would not move some of the bfloat16 weights.

    Raises:
        ConfigError: if the optimizer refuses its arguments, or if it is one of torch's Adams and a step of its
            learning rate would move less than half of the trained bfloat16 weights.
    """
    with ConfigError.instead("Cannot build `optimizer`: "):
        optimizer = make(student.trainable_parameters())
    lr, kind = optimizer.defaults.get("lr"), type(optimizer)
    if lr is None or (share := bfloat16_share(student, lr)) is None:
        return
    if share < LEAST and kind.__module__.startswith("torch.optim.") and "Adam" in kind.__name__:
        raise ConfigError.wrong("model.dtype", expected=f"float32, because {lost(share, lr)}", got="bfloat16")
    if warn:
        say(f"warning: {lost(share, lr)}. model.dtype=float32 loses nothing.")
