"""Many engines, each in a process of its own: Ray actors on one machine or many, seen from outside as one engine.

The only file that imports ray, and only when a pool starts. An actor takes calls one at a time and in order, so the
pool keeps two under way at each that is busy: the next one begins the moment the last one ends, while its answer
travels. An actor that dies is replaced; what it had not answered goes to the others.
"""

import logging
import os
import random
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from opdlight.bounds import NonNegativeFloat, PositiveInt
from opdlight.errors import ConfigError, EngineError, MissingDependencyError
from opdlight.models.loading import resolve_model
from opdlight.rollout.engines.base import Completion, Engine, Request
from opdlight.rollout.engines.ray_actor import POLL_SECONDS, EngineActor, Report, packed

log = logging.getLogger(__name__)
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would send the working directory to every node
}
_START_SECONDS = 1800.0  # longest that an actor may take to be placed, to load its model and to be ready
_MOST_DEATHS = 3  # of one place in a row without a completion, or with the same request
_BLOCK = 32  # tokens; prompts that agree in whole blocks are taken for cached
_PREFILL = 256  # so many tokens of a prompt that are not cached weigh as much as a request that runs


@dataclass(slots=True, eq=False, kw_only=True)
class _Member:
    """An actor as the pool sees it."""

    actor: Any
    calls: deque[Any]  # references to the answers that are still to come, oldest first
    deaths: int  # of its predecessors, in a row without a completion
    since: float  # when it was asked to start
    report: Report | None = None  # the last one; None while it starts
    weights: Any = None  # reference to those that it has been told to load
    running: set[str] = field(default_factory=set)  # requests that it has to answer
    queued: list[Request] = field(default_factory=list)  # those of them that it has not been told yet
    cached: set[int] = field(default_factory=set)  # ends of prompt blocks that it has seen with these weights


class RayEngine:
    """A pool of engines as Ray actors: requests are spread by load, weights travel once to each node.

    A request goes to the actor with the fewest unfinished ones; 256 tokens of its prompt that an actor has not cached
    weigh as much as one of them, so that a long conversation stays where it is. An error of an engine is raised as it
    is. An actor that dies is replaced by one with the current weights, and what it had not answered is answered by
    another: the same completion where requests have seeds, and never twice.

    Every machine needs opdlight, the environment's packages, and `model` under the same path; a shared folder or a Hub
    name gives that. Each process of `trainer=ddp` or `fsdp` has a pool of its own: let them share one Ray by
    `address=auto`, with room for processes × actors, because with null each starts a Ray that takes the whole machine
    for its own. Ray knows nothing of the trainer's GPUs: start it with CUDA_VISIBLE_DEVICES naming the others.

    Args:
        model: folder or Hub name, as `engine` takes it.
        engine: makes an actor's engine, given `model`.
        actors: how many.
        address: of a running Ray cluster, `auto` for the one that this machine belongs to; null starts Ray here, and
            `close` ends it.
        num_cpus: CPUs of each actor, and its threads.
        num_gpus: GPUs of each actor; 0 shares those that are visible with the trainer.

    Raises:
        EngineError: from any method, if an actor cannot be started or replacements keep dying.
    """

    def __init__(
        self,
        model: str,
        engine: Callable[..., Engine],
        *,
        actors: PositiveInt = 2,
        address: str | None = None,
        num_cpus: NonNegativeFloat = 1,
        num_gpus: NonNegativeFloat = 0,
    ) -> None:
        self.policy_version = 0
        self._make_engine, self._model = engine, resolve_model(model)
        self._weights: Any = None  # reference to the newest; None: those of the folder
        self._waiting: deque[str] = deque()  # requests without an actor
        self._requests: dict[str, Request] = {}  # all that are unfinished
        self._deaths: Counter[str] = Counter()  # how many actors have died with an unfinished request
        self._past: Counter[str] = Counter(restarts=0, resent=0)  # and the counters of actors that died
        self._members: list[_Member] = []
        self._ray = _import_ray()
        self._owns_ray = not self._ray.is_initialized()
        if self._owns_ray:
            self._join(address)
        try:
            self._check_room(actors, {"CPU": num_cpus, "GPU": num_gpus}, final=address is None)
            options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "scheduling_strategy": "SPREAD"}
            self._actor_class = self._ray.remote(EngineActor).options(**options)
            self._members += [self._new_member(deaths=0) for _ in range(actors)]
            while starting := [m for m in self._members if m.report is None]:
                self._check_patience(starting)
                self._receive(seconds=1.0)
        except BaseException:
            self.close()
            raise
        self.max_model_len = min(m.report.max_model_len for m in self._members if m.report is not None)

    def add_request(self, request: Request) -> None:
        """Queue a request. What only an actor's engine can refuse, such as an unknown token id, `step` raises."""
        request.check(self.max_model_len)
        if request.request_id in self._requests:
            raise EngineError(f"Request {request.request_id} is already running.")
        self._requests[request.request_id] = request
        self._waiting.append(request.request_id)

    def step(self) -> list[Completion]:
        """What has been completed since; waits at most `POLL_SECONDS` for something."""
        ready = [m for m in self._members if m.report is not None]
        while ready and self._waiting:
            self._assign(self._requests[self._waiting.popleft()], ready)
        if self._requests and not ready:
            self._check_patience(self._members)
        return self._receive(POLL_SECONDS)

    def has_unfinished(self) -> bool:
        """True while a request waits or runs."""
        return bool(self._requests)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Load weights by their checkpoint names into every actor; those that are starting load them afterwards.

        Raises EngineError while requests are unfinished, and if an engine refuses the weights: then all of them do,
        before anything has changed.
        """
        if self._requests:
            raise EngineError(f"Weights cannot change while {len(self._requests)} requests are unfinished.")
        new = self._ray.put({name: packed(weight) for name, weight in weights})
        refusal: EngineError | None = None
        told = [m for m in self._members if m.report is not None]
        for member in told:
            member.calls.append(member.actor.load.remote(new, policy_version))
            member.weights = new
            member.cached.clear()
        for member in told:
            while member.calls:
                try:
                    self._take(member)
                except EngineError as error:
                    refusal, member.weights = error, self._weights
        if refusal is not None:
            raise refusal
        self._weights, self.policy_version = new, policy_version

    def stats(self) -> dict[str, float]:
        """Sums over the actors' counters, those that died included as far as they had told; restarts, repeats."""
        total = Counter(self._past)
        for member in self._members:
            if member.report is not None:
                total.update(member.report.stats)
        return {name: float(value) for name, value in total.items()}

    def close(self) -> None:
        """End the actors, and Ray if the pool has started it."""
        if not self._ray.is_initialized():
            return
        for member in self._members:
            self._ray.kill(member.actor)
        self._members.clear()
        if self._owns_ray:
            self._ray.shutdown()
            self._owns_ray = False

    def _join(self, address: str | None) -> None:
        own = {} if address else {"include_dashboard": False}
        host, _, port = (address or "").rpartition(":")
        try:
            if port.isdigit():  # Ray would try for many minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            with _process_state_kept():
                self._ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
        except OSError as error:
            if address is None:
                raise
            expected = "of a Ray cluster that runs (`ray start --head` starts one), or null"
            raise ConfigError.wrong("engine.address", expected=f"{expected} ({error})", got=address) from error

    def _new_member(self, deaths: int) -> _Member:
        actor = self._actor_class.remote()
        calls = deque([actor.start.remote(self._make_engine, self._model)])
        return _Member(actor=actor, calls=calls, deaths=deaths, since=time.monotonic())

    def _assign(self, request: Request, ready: list[_Member]) -> None:
        """Give a request to the one of these actors that has the least to do with it."""
        blocks = set(_block_ends(request.prompt_ids))
        member = min(ready, key=lambda m: len(m.running) + len(blocks - m.cached) * _BLOCK / _PREFILL)
        member.running.add(request.request_id)
        member.queued.append(request)
        member.cached.update(blocks)

    def _go_on(self, member: _Member) -> None:
        """Keep two calls under way at an actor that has something to do."""
        if member.report is None:
            return
        if member.weights is not self._weights:  # it has started since they came
            member.calls.append(member.actor.load.remote(self._weights, self.policy_version))
            member.weights = self._weights
        while member.running and len(member.calls) < 2:
            member.calls.append(member.actor.advance.remote(member.queued))
            member.queued = []

    def _receive(self, seconds: float) -> list[Completion]:
        """Take every answer that is there, the first of which may be waited for; no actor is left idle."""
        for member in self._members:
            self._go_on(member)
        oldest = {m.calls[0]: m for m in self._members if m.calls}
        if not oldest:
            return []
        self._ray.wait(list(oldest), timeout=seconds)
        answered, _ = self._ray.wait(list(oldest), num_returns=len(oldest), timeout=0)
        completions = []
        for call in answered:
            completions += self._take(oldest[call])
        for member in self._members:
            self._go_on(member)
        return completions

    def _take(self, member: _Member) -> list[Completion]:
        """The oldest answer of an actor; if it has died there is none, and it is replaced."""
        errors = self._ray.exceptions
        try:
            member.report = report = self._ray.get(member.calls.popleft())
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.RayError as error:
            self._replace(member, error)
            return []
        for completion in report.completions:
            member.running.remove(completion.request_id)
            del self._requests[completion.request_id], self._deaths[completion.request_id]
            member.deaths = 0
        return report.completions

    def _replace(self, member: _Member, error: Exception) -> None:
        """Let a new actor take the place of one that has died; its requests wait for any that is ready."""
        self._ray.kill(member.actor)  # one that only cannot be reached must not go on either
        member.calls.clear()
        sent = member.running - {request.request_id for request in member.queued}
        self._deaths.update(sent)
        self._past.update(restarts=1, resent=len(sent))
        place = "while it started"
        if member.report is not None:
            self._past.update(member.report.stats)
            place = f"on {member.report.place}"
        if member.deaths + 1 >= _MOST_DEATHS or any(self._deaths[request] >= _MOST_DEATHS for request in sent):
            raise EngineError(
                f"Rollout actors keep dying: {_MOST_DEATHS} in a row without a completion or with the same request, "
                f"the last one {place}. Actors write to /tmp/ray/session_latest/logs on their machine; engine=vllm "
                f"runs an engine in this process. Ray says: {error}"
            ) from error
        log.warning("A rollout actor died %s; it is replaced, and %d requests are repeated.", place, len(sent))
        self._waiting.extendleft(reversed([r for r in self._requests if r in member.running]))
        self._members[self._members.index(member)] = self._new_member(member.deaths + 1)

    def _check_room(self, actors: int, each: Mapping[str, float], *, final: bool) -> None:
        """Refuse more than this machine has; a cluster may still grow."""
        for kind, amount in each.items():
            there = self._ray.cluster_resources().get(kind, 0)
            if actors * amount <= there:
                continue
            if final:
                most = f"at most {there:g} {kind}s of this machine / `engine.num_{kind.lower()}s` = {amount:g}"
                raise ConfigError.wrong("engine.actors", expected=most, got=actors)
            log.warning("Waiting for %d actors × %g %ss: the cluster has %g.", actors, amount, kind, there)

    def _check_patience(self, starting: list[_Member]) -> None:
        if time.monotonic() - min(m.since for m in starting) > _START_SECONDS:
            raise EngineError(
                f"A rollout actor has not started within {_START_SECONDS:g} s. Of the cluster's "
                f"{self._ray.cluster_resources()}, {self._ray.available_resources()} are free."
            )


def _block_ends(prompt_ids: list[int]) -> Iterator[int]:
    """A running hash at the end of each whole block: the same where two prompts are the same up to there."""
    running = 0
    for start in range(0, len(prompt_ids) - _BLOCK + 1, _BLOCK):
        running = hash((running, *prompt_ids[start : start + _BLOCK]))
        yield running


def _import_ray() -> Any:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        with _process_state_kept():
            import ray
    except ImportError as error:
        raise MissingDependencyError.extra("The Ray engine", "ray") from error
    return ray


@contextmanager
def _process_state_kept() -> Iterator[None]:
    """Put back what Ray's start changes for the whole process: Python's random stream, what SIGTERM does."""
    stream, handler = random.getstate(), signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        random.setstate(stream)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
