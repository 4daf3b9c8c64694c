"""The actor of a Ray pool: one engine in its own process, and its messages to the pool."""

import os
import socket
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from opdlight.rollout.engines.base import Completion, Engine, Request
from opdlight.rollout.engines.model_folder import Shapes
from opdlight.rollout.engines.vllm import VLLMEngine

POLL_SECONDS = 0.05  # longest time that an actor decodes before it reports, and that the pool waits for a report
Packed = tuple[np.ndarray, torch.dtype, torch.Size]  # bytes of a weight, which processes of a node share without a copy


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """An actor's reply to every call."""

    completions: list[Completion]
    stats: dict[str, float]
    max_model_len: int
    dtype: torch.dtype | None  # of the engine's weights, if it says so
    place: str  # host and process
    shapes: Shapes | None = None  # of the engine's weights, if it says so; in the first report only


class EngineActor:
    """Runs an engine in its own process."""

    engine: Engine

    def start(self, make_engine: Callable[..., Engine], model: str, gpu: int | None) -> Report:
        """Make the engine, on this GPU or the first. Not in `__init__`: Ray would turn an error there into text."""
        if gpu is not None:
            torch.cuda.set_device(gpu)
        self.engine = make_engine(model=model)
        return replace(self._report([]), shapes=getattr(self.engine, "shapes", None))

    def load(self, weights: Mapping[str, Packed], policy_version: int) -> Report:
        """Load weights from the object store of this node."""
        self.engine.update_weights(((name, unpacked(*raw)) for name, raw in weights.items()), policy_version)
        return self._report([])

    def transfer(self, method: str, arguments: dict[str, Any]) -> None:
        """Do a part of vLLM's weight transfer; see `nccl.Client`."""
        cast("VLLMEngine", self.engine).transfer(method, arguments)

    def adopt(self, policy_version: int) -> Report:
        """The weights that have been transferred are of this version."""
        cast("VLLMEngine", self.engine).adopt(policy_version)
        return self._report([])

    def sleep(self) -> Report:
        """Free the engine's memory."""
        self.engine.sleep()
        return self._report([])

    def wake(self) -> Report:
        """Take it back."""
        self.engine.wake()
        return self._report([])

    def advance(self, requests: list[Request]) -> Report:
        """Queue requests, then decode until a completion has finished or `POLL_SECONDS` have passed."""
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
            dtype=getattr(self.engine, "dtype", None),
            place=f"{socket.gethostname()}, process {os.getpid()}",
        )


class WeightKeeper:
    """Holds the current weights for actors that start later, whichever process's pool they belong to."""

    def keep(self, weights: Mapping[str, Packed]) -> None:
        """Hold these, over the memory of the object store."""
        self._weights = weights

    def weights(self) -> Mapping[str, Packed]:
        """Those that were kept last."""
        return self._weights


def packed(weight: Tensor) -> Packed:
    """A weight for the object store."""
    whole = weight.cpu().contiguous()
    return whole.reshape(-1).view(torch.uint8).numpy(), whole.dtype, whole.shape


def unpacked(raw: np.ndarray, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """The weight as a tensor over the memory of the object store; it must not be written to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the array is read-only
        return torch.from_numpy(raw).view(dtype).reshape(shape)
