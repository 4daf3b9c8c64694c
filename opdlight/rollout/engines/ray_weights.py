"""How the student's weights come to the actors: the first process of the trainer sends them to those of all pools.

Each process of the trainer has a pool and is a driver of Ray. A reference to an object belongs to one driver, but an
actor with a name can be called by every driver of the cluster. So the first process puts the weights into the object
store once and passes them to the actors of all pools, and Ray copies them once to each node.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opdlight.errors import EngineError
from opdlight.rollout.engines.ray_actor import Report, WeightKeeper, packed
from opdlight.system.distributed import all_gather, full_tensor, rank, world_size

NAMESPACE = "opdlight"  # of the names of actors


@dataclass(frozen=True, slots=True)
class Died:
    """The outcome of a call to an actor that has died."""

    why: str


Outcome = Report | EngineError | Died


class ObjectStore:
    """Sends weights through Ray's object store.

    Args:
        ray: the package.
        name: of this process's pool.
    """

    keeps = True  # the weights, for actors that start later

    def __init__(self, ray: Any, name: str) -> None:
        self._ray, self._name = ray, name
        self._loaded: Any = None  # reference to what all actors have loaded
        self._keeper: Any = None  # of the first of several processes
        self._keepers_name = ""

    def send(
        self, weights: Iterable[tuple[str, Tensor]], version: int, actors: Mapping[str, Any], dtype: torch.dtype | None
    ) -> tuple[dict[str, Outcome], int]:
        """Let the actors of all pools load weights; every rank must call it.

        Args:
            weights: named as in a checkpoint; sharded ones are gathered, one at a time.
            version: of the weights.
            actors: name → handle, of those of this process's pool that have started.
            dtype: of the actors' engines, to which the weights are cast; None leaves them as they are.

        Returns:
            Name → outcome for the actors of all pools, and the size of the weights in bytes.
        """
        names = [name for part in all_gather(list(actors)) for name in part]
        found, size, outcomes = {}, 0, dict[str, Outcome]()
        for name, weight in weights:
            whole = full_tensor(weight.detach(), dtype)
            size += whole.numel() * whole.element_size()
            if rank() == 0:
                found[name] = packed(whole)
        if rank() == 0:
            new = self._ray.put(found)
            called = {name: find_actor(self._ray, name, actors) for name in names}
            calls = {
                name: actor if isinstance(actor, Died) else actor.load.remote(new, version)
                for name, actor in called.items()
            }
            outcomes = {name: outcome(self._ray, call) for name, call in calls.items()}
            if world_size() > 1 and not _refused(outcomes):
                self._keep(new)
        outcomes, self._keepers_name = all_gather((outcomes, self._keepers_name))[0]
        if not _refused(outcomes):
            self._loaded = new if rank() == 0 else None
        return outcomes, size

    def current(self) -> Any:
        """A reference to the current weights, for an actor of this process's pool that has just started."""
        if self._loaded is None:
            keeper = self._ray.get_actor(self._keepers_name, namespace=NAMESPACE)
            self._loaded = keeper.weights.remote()
        return self._loaded

    def close(self) -> None:
        """Forget the weights."""
        self._loaded = None
        if self._keeper is not None:
            self._ray.kill(self._keeper)
            self._keeper = None

    def _keep(self, new: Any) -> None:
        """Give the weights to an actor that the other processes can ask for them."""
        if self._keeper is None:
            self._keepers_name = f"{self._name}-weights"
            options = {"name": self._keepers_name, "namespace": NAMESPACE, "num_cpus": 0}
            self._keeper = self._ray.remote(WeightKeeper).options(**options).remote()
        self._ray.get(self._keeper.keep.remote(new))


def find_actor(ray: Any, name: str, actors: Mapping[str, Any]) -> Any:
    """The handle of an actor of this process's pool, `actors`, or of another one's; `Died` if Ray knows none."""
    try:
        return actors[name] if name in actors else ray.get_actor(name, namespace=NAMESPACE)
    except ValueError as error:  # Ray has forgotten the name
        return Died(str(error))


def outcome(ray: Any, call: Any) -> Outcome:
    """What became of a call to an actor; an error that is none of its engine is raised."""
    if isinstance(call, Died):
        return call
    try:
        report: Report = ray.get(call)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, EngineError):
            return error.cause
        raise error.cause from error
    except ray.exceptions.RayError as error:
        return Died(str(error))
    return report


def _refused(outcomes: Mapping[str, Outcome]) -> bool:
    return any(isinstance(outcome, EngineError) for outcome in outcomes.values())
