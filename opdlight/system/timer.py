"""What a step is doing, and how long each part of it took."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Timer:
    """`with stages("rollout")` names what is going on and adds up its wall seconds, those of a stage inside left out.

    On a GPU the work that was handed to it counts too.
    """

    def __init__(self) -> None:
        self.name = ""
        self.seconds: dict[str, float] = {}
        self.on_change: Callable[[str], None] = lambda name: None
        self._inner = 0.0  # seconds of the stages inside the one that is going on

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Within, `name` is what is going on."""
        before, self.name = self.name, name
        self.on_change(name)
        outer, self._inner = self._inner, 0.0
        start = time.perf_counter()
        try:
            yield
        finally:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            passed = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + passed - self._inner
            self._inner = outer + passed
            self.name = before
            self.on_change(before)
