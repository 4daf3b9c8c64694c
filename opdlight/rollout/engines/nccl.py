"""Weights over NCCL, from the GPU of the trainer's first process to the GPUs of its engines, by vLLM's weight transfer.

vLLM's trainer side opens the connection, tells the engines what is coming, and broadcasts it in packed buffers; each
engine loads what it gets as a checkpoint. Here are the two things that it asks for: the weights, and a client that
passes its calls on to the engines.
"""

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from opdlight.rollout.engines import vllm_start
from opdlight.system.distributed import full_tensor


class Client(Protocol):
    """vLLM's calls to the engines; each is made to all of them, and returns when all have answered."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Join the trainer's NCCL group; `rank_offset` is the rank of the first GPU of the first engine."""

    def start_weight_update(self) -> None:
        """Prepare for weights."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive and load weights of these names, dtypes and shapes, while the trainer broadcasts them."""

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """All weights have come."""


@dataclass(frozen=True, slots=True)
class Meta:
    """What vLLM must know of a weight before it comes."""

    name: str
    dtype: torch.dtype  # in which it is sent
    shape: tuple[int, ...]


class Source:
    """The weights to send, as vLLM reads them: first what they are, then each one whole, on this GPU."""

    def __init__(self) -> None:
        self.weights: Mapping[str, Tensor] = {}
        self.dtype: torch.dtype | None = None

    def metadata(self) -> list[Meta]:
        """In the order in which they come; nothing is gathered."""
        return [Meta(name, self.dtype or w.dtype, tuple(w.shape)) for name, w in self.weights.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """One by one, in the engine's dtype; gathering them is collective."""
        gpu = torch.cuda.current_device()
        for name, weight in self.weights.items():
            yield name, full_tensor(weight, self.dtype).to(gpu)


class NcclSender:
    """The first process's end of the connection to engines; making it connects them.

    Args:
        client: calls the engines.
        gpus: number of GPUs of all engines together.
        address: of this machine, as the engines see it.
    """

    def __init__(self, client: Client, *, gpus: int, address: str) -> None:
        self._source = Source()
        with socket.create_server(("", 0)) as free:
            port = free.getsockname()[1]
        self._trainer = vllm_start.connect_nccl(client, self._source, address=address, port=port, world_size=1 + gpus)

    def send(self, weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
        """Send weights to all engines, which load them; other ranks of a sharded student must call `gather`."""
        self._source.weights, self._source.dtype = weights, dtype
        try:
            self._trainer.send_weights()
        finally:
            self._source.weights = {}

    def close(self) -> None:
        """Leave the group."""
        self._trainer.shutdown()


def gather(weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    """What the other ranks do while the first sends: gather the same weights in the same order, and drop them."""
    for weight in weights.values():
        full_tensor(weight, dtype)
