"""What a training step is doing, and how long each part of it took."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Timer:
    """Adds up wall seconds by the name of a part: `with timer("rollout"): ...`.

    Where parts are nested, the seconds of the inner one do not count for the outer one. On a GPU a part ends when the
    kernels that it has launched have finished.

    `name` is the current part, empty outside all parts; `seconds` maps each name to its sum; `on_change` is called
    with the new name whenever it changes.
    """

    def __init__(self) -> None:
        self.name = ""
        self.seconds: dict[str, float] = {}
        self.on_change: Callable[[str], None] = lambda name: None
        self._inner = 0.0  # seconds of the parts nested in the current one

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the block as part `name`."""
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
