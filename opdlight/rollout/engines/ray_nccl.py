"""NCCL from the trainer's first process to the GPUs of all actors; the alternative to Ray's object store."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from opdlight.errors import EngineError
from opdlight.rollout.engines.model_folder import Shapes, complete_weights
from opdlight.rollout.engines.nccl import NcclSender, gather
from opdlight.rollout.engines.ray_weights import Died, Outcome, find_actor, outcome
from opdlight.system.distributed import all_gather, rank


class Nccl:
    """Sends weights over NCCL. They are kept nowhere, so an actor that starts later has none until the next ones.

    Args:
        ray: the package.
        gpus: GPUs of each actor.
        connect: makes the connection to the actors.
    """

    keeps = False

    def __init__(self, ray: Any, *, gpus: int, connect: Callable[..., NcclSender] = NcclSender) -> None:
        self._ray, self._gpus, self._connect = ray, gpus, connect
        self.shapes: Shapes = {}  # of the weights of the actors' engines
        self._sender: NcclSender | None = None
        self._connected: dict[str, Any] = {}

    def send(
        self, weights: Iterable[tuple[str, Tensor]], version: int, actors: Mapping[str, Any], dtype: torch.dtype | None
    ) -> tuple[dict[str, Outcome], int]:
        """As `ObjectStore.send`, but an actor that dies meanwhile is an error.

        Raises:
            EngineError: if the weights do not fit the model (nothing is sent then), or an actor fails while they come.
        """
        named = complete_weights(weights, self.shapes)
        names = [name for part in all_gather(list(actors)) for name in part]
        outcomes: dict[str, Outcome] = {}
        if rank() == 0:
            alive, outcomes = self._ask(names, actors)
            outcomes |= self._broadcast(alive, named, dtype, version)
        else:
            gather(named, dtype)
        size = sum(w.numel() * (dtype or w.dtype).itemsize for w in named.values())
        return all_gather(outcomes)[0], size

    def close(self) -> None:
        """Leave the group; the actors are ended by their pools."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    def _ask(self, names: Iterable[str], actors: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Outcome]]:
        """The actors that answer, and the outcomes of the others: NCCL would wait for a dead one for ever."""
        found = {name: find_actor(self._ray, name, actors) for name in names}
        calls = {name: actor.advance.remote([]) for name, actor in found.items() if not isinstance(actor, Died)}
        answers = {name: outcome(self._ray, calls.get(name, actor)) for name, actor in found.items()}
        dead: dict[str, Outcome] = {name: answer for name, answer in answers.items() if isinstance(answer, Died)}
        return {name: actor for name, actor in found.items() if name not in dead}, dead

    def _broadcast(
        self, alive: dict[str, Any], named: Mapping[str, Tensor], dtype: torch.dtype | None, version: int
    ) -> dict[str, Outcome]:
        errors = self._ray.exceptions
        client = ActorClient(self._ray, list(alive.values()), self._gpus)
        try:
            if list(alive) != list(self._connected):
                self._leave(alive)
                address = self._ray.util.get_node_ip_address()
                self._sender = self._connect(client, gpus=self._gpus * len(alive), address=address)
                self._connected = alive
            assert self._sender is not None
            self._sender.send(named, dtype)
            calls = {name: actor.adopt.remote(version) for name, actor in alive.items()}
            return {name: outcome(self._ray, call) for name, call in calls.items()}
        except errors.RayError as error:
            raise EngineError(
                f"An actor failed while it was sent weights over NCCL, and the others wait: {error} Resume the run; "
                "with engine.transfer=object_store an actor may fail at any time."
            ) from error

    def _leave(self, alive: Mapping[str, Any]) -> None:
        """Close a connection of which not all are left."""
        if self._sender is None:
            return
        old = [actor for name, actor in alive.items() if name in self._connected]
        ActorClient(self._ray, old, self._gpus).shutdown_weight_transfer_engine()
        self.close()


class ActorClient:
    """vLLM's calls of a weight update, made to all actors at once; each is an engine with so many GPUs."""

    def __init__(self, ray: Any, actors: list[Any], gpus: int) -> None:
        self._ray, self._actors, self._gpus = ray, actors, gpus

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Let all join the group; vLLM numbers the GPUs of one engine, so each actor gets an offset of its own."""
        first = init_info["rank_offset"]
        offsets = [first + number * self._gpus for number in range(len(self._actors))]
        self._all("init_weight_transfer_engine", [{"init_info": {**init_info, "rank_offset": o}} for o in offsets])

    def start_weight_update(self) -> None:
        """Let all prepare for weights."""
        self._all("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Let all receive and load the weights that the trainer broadcasts meanwhile."""
        self._all("update_weights", [{"update_info": update_info}] * len(self._actors))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """All weights have come."""
        self._all("finish_weight_update")

    def shutdown_weight_transfer_engine(self) -> None:
        """Let all leave the group."""
        self._all("shutdown_weight_transfer_engine")

    def _all(self, method: str, arguments: list[dict[str, Any]] | None = None) -> None:
        given = arguments or [{}] * len(self._actors)
        calls = [actor.transfer.remote(method, how) for actor, how in zip(self._actors, given, strict=True)]
        for call in calls:
            self._ray.get(call)
