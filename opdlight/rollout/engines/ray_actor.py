"""What runs in a process of a rollout pool: one engine, and the messages between it and the pool."""

import os
import socket
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from opdlight.rollout.engines.base import Completion, Engine, Request
from opdlight.system.distributed import full_tensor

POLL_SECONDS = 0.05  # longest that an actor decodes without a word, and that its pool waits for one
Packed = tuple[np.ndarray, torch.dtype, torch.Size]  # a weight's bytes, which Ray shares without a copy


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an actor answers to every call."""

    completions: list[Completion]
    stats: dict[str, float]
    max_model_len: int
    place: str  # host and process


class EngineActor:
    """Runs an engine in its own process."""

    engine: Engine

    def start(self, make_engine: Callable[..., Engine], model: str) -> Report:
        """Make the engine: not in `__init__`, whose errors Ray would hand on as text."""
        self.engine = make_engine(model=model)
        return self._report([])

    def load(self, weights: Mapping[str, Packed], policy_version: int) -> Report:
        """Take weights from this node's object store."""
        self.engine.update_weights(((name, unpacked(*raw)) for name, raw in weights.items()), policy_version)
        return self._report([])

    def advance(self, requests: list[Request]) -> Report:
        """Queue requests, then decode until something has finished or `POLL_SECONDS` have passed."""
        for request in requests:
            self.engine.add_request(request)
        completions: list[Completion] = []
        until = time.monotonic() + POLL_SECONDS
        while not completions and self.engine.has_unfinished() and time.monotonic() < until:
            completions = self.engine.step()
        return self._report(completions)

    def _report(self, completions: list[Completion]) -> Report:
        return Report(
            completions=completions,
            stats=self.engine.stats(),
            max_model_len=self.engine.max_model_len,
            place=f"{socket.gethostname()}, process {os.getpid()}",
        )


def packed(weight: Tensor) -> Packed:
    """A weight to put into the object store; one that is divided is put together, every rank must ask."""
    full = full_tensor(weight).detach().cpu().contiguous()
    return full.reshape(-1).view(torch.uint8).numpy(), full.dtype, full.shape


def unpacked(raw: np.ndarray, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """The weight, in the object store's own memory: it may be read only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an engine only reads
        return torch.from_numpy(raw).view(dtype).reshape(shape)
