"""A pool of engines in processes of their own, Ray actors on one machine or several, that acts as one engine.

An actor runs its calls one after the other; the pool keeps two calls pending at each busy actor, so that it starts the
second while the reply to the first is on its way. An actor that dies is replaced, and its unfinished requests are sent
to others.
"""

import logging
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from opdlight.bounds import NonNegativeFloat, PositiveInt
from opdlight.errors import ConfigError, EngineError
from opdlight.models.loading import resolve_model
from opdlight.rollout.engines import ray_start
from opdlight.rollout.engines.base import NO_WEIGHTS, Completion, Engine, Request
from opdlight.rollout.engines.ray_actor import POLL_SECONDS, EngineActor, Report
from opdlight.rollout.engines.ray_nccl import Nccl
from opdlight.rollout.engines.ray_weights import NAMESPACE, Died, ObjectStore
from opdlight.rollout.engines.vllm import VLLMEngine

log = logging.getLogger(__name__)
_START_SECONDS = 1800.0  # longest time for an actor to be scheduled and to load its model
_MOST_DEATHS = 3  # of an actor and its replacements in a row without a completion, or with the same request
_BLOCK = 32  # tokens; the prefix cache is modelled in blocks of this size
_PREFILL = 256  # uncached prompt tokens that count as much load as one running request


@dataclass(slots=True, eq=False, kw_only=True)
class _Member:
    """An actor as the pool sees it."""

    name: str  # by which Ray knows the actor
    actor: Any
    calls: deque[Any]  # references to pending replies, oldest first
    deaths: int  # of the actors that it replaces, in a row without a completion
    since: float  # time.monotonic() when it was started
    report: Report | None = None  # the last reply; None until it has started
    weights: object = None  # what it has loaded: `RayEngine._weights` of that time
    running: set[str] = field(default_factory=set)  # ids of its unfinished requests
    queued: list[Request] = field(default_factory=list)  # those of them that it has not been sent yet
    cached: set[int] = field(default_factory=set)  # hashes of the prompt blocks in its prefix cache


class RayEngine:
    """A pool of engines as Ray actors: requests are spread by load, weights are copied once to each node.

    A request goes to the actor with the least load: its number of unfinished requests, plus one for every 256 prompt
    tokens that are not in its prefix cache, so that a long conversation stays with its actor. An error of an engine is
    raised unchanged. An actor that dies is replaced by one with the current weights, and its unfinished requests are
    repeated by other actors: no completion is returned twice, and one with a seed is the same.

    Every machine needs opdlight, the environment's packages, and `model` under the same path (a shared folder or a Hub
    name). Each process of `trainer=ddp` or `fsdp` has a pool of its own. They share the Ray cluster at `address`, which
    needs resources for processes × actors, and the first process sends the weights to the actors of all pools. Ray does
    not know which GPUs the trainer uses: start it with CUDA_VISIBLE_DEVICES set to the others.

    Args:
        model: folder or Hub name, passed to `engine`.
        engine: makes the engine of an actor from `model`.
        actors: number of actors.
        address: address of a running Ray cluster, or `auto` for the one of this machine; null starts Ray on this
            machine until `close`, which only a trainer of one process may.
        num_cpus: CPUs of each actor, and its threads.
        num_gpus: GPUs of each actor; with 0 it shares the one of this process, and sleeps while the student trains.
        transfer: how weights travel: by `nccl`, from the trainer's GPU to those of the actors (whole ones of their own,
            and vLLM as `engine`), or by Ray's `object_store`; `auto` is NCCL where that is possible. With NCCL an actor
            that dies is replaced by one that works from the next publication on; if a pool has no other, or it dies
            during a publication, the run ends.

    Raises:
        ConfigError: if there is no cluster at `address`, this machine has too few resources, or NCCL is not possible.
        EngineError: also by the methods, if an actor cannot be started or actors keep dying.
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
        transfer: Literal["auto", "object_store", "nccl"] = "auto",
    ) -> None:
        self.policy_version, self.shares_cores = 0, False
        # the trainer's, if the actors share it: then they lend it their memory between rollouts
        self._gpu = torch.cuda.current_device() if num_gpus == 0 and torch.cuda.is_available() else None
        self._make_engine, self._model = engine, resolve_model(model)
        self._weights: object = None  # stands for the current weights; None: those of the model's folder
        self._bytes = 0  # of all weights so far, each counted once
        self._started = 0  # actors so far
        self._waiting: deque[str] = deque()  # ids of requests without an actor
        self._requests: dict[str, Request] = {}  # all unfinished ones, by id
        self._deaths: Counter[str] = Counter()  # request id → actors that died while it was unfinished
        self._past: Counter[str] = Counter(restarts=0, resent=0)  # with the counters of the actors that died
        self._members: list[_Member] = []
        self._ray = ray_start.import_ray()
        self._name = f"opdlight-{secrets.token_hex(4)}"
        self._transfer = self._make_transfer(transfer, num_gpus)
        self._owns_ray = not self._ray.is_initialized()
        if self._owns_ray:
            ray_start.start_ray(self._ray, address)
        try:
            self._check_resources(actors, {"CPU": num_cpus, "GPU": num_gpus}, final=address is None)
            options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "scheduling_strategy": "SPREAD"}
            self._actor_class = self._ray.remote(EngineActor)
            self._options = {**options, "namespace": NAMESPACE}
            self._members += [self._new_member(deaths=0) for _ in range(actors)]
            while starting := [m for m in self._members if m.report is None]:
                self._check_start_time(starting)
                self._receive(seconds=1.0)
        except BaseException:
            self.close()
            raise
        reports = [m.report for m in self._members if m.report is not None]
        if isinstance(self._transfer, Nccl):
            self._transfer.shapes = reports[0].shapes or {}
        self.max_model_len, self._dtype = min(r.max_model_len for r in reports), reports[0].dtype

    def add_request(self, request: Request) -> None:
        """Queue a request. What only an actor's engine can detect, such as an unknown token id, is raised by `step`."""
        request.check(self.max_model_len)
        if self.policy_version == NO_WEIGHTS:
            raise EngineError(f"Request {request.request_id} came while the engine had no weights.")
        if request.request_id in self._requests:
            raise EngineError(f"Request {request.request_id} is already running.")
        self._requests[request.request_id] = request
        self._waiting.append(request.request_id)

    def step(self) -> list[Completion]:
        """The completions since the last call; waits up to `POLL_SECONDS` for one."""
        ready = [m for m in self._members if m.report is not None and self._can_have_weights(m)]
        while ready and self._waiting:
            self._assign(self._requests[self._waiting.popleft()], ready)
        if self._requests and not ready:
            if not self._transfer.keeps:
                raise EngineError("All actors that had the weights have died. Resume the run from its last checkpoint.")
            self._check_start_time(self._members)
        return self._receive(POLL_SECONDS)

    def _can_have_weights(self, member: _Member) -> bool:
        """Has this actor the current weights, or can it get them?"""
        return self._transfer.keeps or member.weights is self._weights

    def has_unfinished(self) -> bool:
        """True while a request is queued or running."""
        return bool(self._requests)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Load weights, named as in a checkpoint, into all actors; those that are starting load them afterwards.

        Raises:
            EngineError: while requests are unfinished, or if the engines refuse the weights; nothing changes then.
        """
        if self._requests:
            raise EngineError(f"Weights cannot change while {len(self._requests)} requests are unfinished.")
        for member in [m for m in self._members if m.report is not None]:
            self._take_all(member)
        started = {m.name: m for m in self._members if m.report is not None}
        actors = {name: member.actor for name, member in started.items()}
        outcomes, size = self._transfer.send(weights, policy_version, actors, self._dtype)
        new, refusals = object(), []
        for name, outcome in outcomes.items():
            if isinstance(outcome, EngineError):
                refusals.append(outcome)
            elif name not in started:
                continue  # of another process
            elif isinstance(outcome, Died):
                self._replace(started[name], outcome.why)
            else:
                started[name].report, started[name].weights = outcome, new
                started[name].cached.clear()
        if refusals:
            raise refusals[0]
        self._weights, self.policy_version = new, policy_version
        self._bytes += size

    def sleep(self) -> None:
        """Free the memory of actors that share the trainer's GPUs (`num_gpus` 0); others have theirs for themselves."""
        if self._requests:
            raise EngineError(f"The engine cannot sleep while {len(self._requests)} requests are unfinished.")
        if self._gpu is not None:
            self._tell("sleep")
            self.policy_version = NO_WEIGHTS  # on every rank alike, whatever an actor that just starts has

    def wake(self) -> None:
        """Let these actors take their memory back."""
        if self._gpu is not None:
            self._tell("wake")

    def _tell(self, method: str) -> None:
        """Call a method of all actors that have started."""
        started = [m for m in self._members if m.report is not None]
        for member in started:
            member.calls.append(getattr(member.actor, method).remote())
        for member in started:
            self._take_all(member)

    def _take_all(self, member: _Member) -> None:
        while member.calls:
            self._take(member)

    def stats(self) -> dict[str, float]:
        """Sums of the actors' counters, up to their last report for those that died; restarts and repeated requests."""
        total = Counter(self._past)
        for member in self._members:
            if member.report is not None:
                total.update(member.report.stats)
        total["update_bytes"] = self._bytes
        return {name: float(value) for name, value in total.items()}

    def close(self) -> None:
        """Stop the actors, and Ray if the pool has started it."""
        if not self._ray.is_initialized():
            return
        for member in self._members:
            self._ray.kill(member.actor)
        self._members.clear()
        self._transfer.close()
        if self._owns_ray:
            self._ray.shutdown()
            self._owns_ray = False

    def _make_transfer(self, transfer: str, num_gpus: float) -> ObjectStore | Nccl:
        possible = torch.cuda.is_available() and num_gpus >= 1 and float(num_gpus).is_integer()
        possible = possible and getattr(self._make_engine, "func", self._make_engine) is VLLMEngine
        if transfer == "nccl" and not possible:
            expected = "object_store, unless the trainer has a GPU, and each actor VLLMEngine and GPUs (`num_gpus` ≥ 1)"
            raise ConfigError.wrong("engine.transfer", expected=expected, got=transfer)
        if transfer == "object_store" or not possible:
            return ObjectStore(self._ray, self._name)
        log.info("Weights go to the rollout actors over NCCL; engine.transfer=object_store sends them through Ray.")
        self._make_engine = partial(self._make_engine, weight_transfer="nccl")
        return Nccl(self._ray, gpus=int(num_gpus))

    def _new_member(self, deaths: int) -> _Member:
        self._started += 1
        name = f"{self._name}-{self._started}"
        actor = self._actor_class.options(name=name, **self._options).remote()
        calls = deque([actor.start.remote(self._make_engine, self._model, self._gpu)])
        return _Member(name=name, actor=actor, calls=calls, deaths=deaths, since=time.monotonic())

    def _assign(self, request: Request, ready: list[_Member]) -> None:
        """Assign a request to the actor with the least load; see the class."""
        blocks = set(_block_ends(request.prompt_ids))
        member = min(ready, key=lambda m: len(m.running) + len(blocks - m.cached) * _BLOCK / _PREFILL)
        member.running.add(request.request_id)
        member.queued.append(request)
        member.cached.update(blocks)

    def _keep_busy(self, member: _Member) -> None:
        """Send an actor new weights if it lacks them, and keep two calls pending while it has requests."""
        if member.report is None:
            return
        if member.weights is not self._weights and isinstance(self._transfer, ObjectStore):
            # it was starting when they came
            member.calls.append(member.actor.load.remote(self._transfer.current(), self.policy_version))
            member.weights = self._weights
        while member.running and len(member.calls) < 2:
            member.calls.append(member.actor.advance.remote(member.queued))
            member.queued = []

    def _receive(self, seconds: float) -> list[Completion]:
        """Process all replies that have arrived, after waiting up to `seconds` for the first; keep the actors busy."""
        for member in self._members:
            self._keep_busy(member)
        oldest = {m.calls[0]: m for m in self._members if m.calls}
        if not oldest:
            return []
        self._ray.wait(list(oldest), timeout=seconds)
        answered, _ = self._ray.wait(list(oldest), num_returns=len(oldest), timeout=0)
        completions = []
        for call in answered:
            completions += self._take(oldest[call])
        for member in self._members:
            self._keep_busy(member)
        return completions

    def _take(self, member: _Member) -> list[Completion]:
        """The completions in an actor's oldest pending reply; an actor that has died is replaced and gives none."""
        errors = self._ray.exceptions
        try:
            member.report = report = self._ray.get(member.calls.popleft())
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.RayError as error:
            self._replace(member, str(error))
            return []
        for completion in report.completions:
            member.running.remove(completion.request_id)
            del self._requests[completion.request_id], self._deaths[completion.request_id]
            member.deaths = 0
        return report.completions

    def _replace(self, member: _Member, why: str) -> None:
        """Replace an actor that has died by a new one; its requests go to the front of the queue."""
        self._ray.kill(member.actor)  # it may only be unreachable
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
                f"runs an engine in this process. Ray says: {why}"
            )
        log.warning("A rollout actor died %s; it is replaced, and %d requests are repeated.", place, len(sent))
        self._waiting.extendleft(reversed([r for r in self._requests if r in member.running]))
        self._members[self._members.index(member)] = self._new_member(member.deaths + 1)

    def _check_resources(self, actors: int, each: Mapping[str, float], *, final: bool) -> None:
        """Compare the actors' resources with those of the cluster: too few are an error if `final`, else a warning."""
        for kind, amount in each.items():
            available = self._ray.cluster_resources().get(kind, 0)
            if actors * amount <= available:
                continue
            if final:
                most = f"at most {available:g} {kind}s of this machine / `engine.num_{kind.lower()}s` = {amount:g}"
                raise ConfigError.wrong("engine.actors", expected=most, got=actors)
            log.warning("Waiting for %d actors × %g %ss: the cluster has %g.", actors, amount, kind, available)

    def _check_start_time(self, starting: list[_Member]) -> None:
        if time.monotonic() - min(m.since for m in starting) > _START_SECONDS:
            raise EngineError(
                f"A rollout actor has not started within {_START_SECONDS:g} s. Of the cluster's "
                f"{self._ray.cluster_resources()}, {self._ray.available_resources()} are free."
            )


def _block_ends(prompt_ids: list[int]) -> Iterator[int]:
    """The hash of the prompt up to the end of each whole block; equal where two prompts agree up to there."""
    running = 0
    for start in range(0, len(prompt_ids) - _BLOCK + 1, _BLOCK):
        running = hash((running, *prompt_ids[start : start + _BLOCK]))
        yield running
