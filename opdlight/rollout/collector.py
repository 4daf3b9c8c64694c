"""Rolls out trajectories with continuous batching: each turn starts as soon as its environment has answered."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass

from opdlight.envs.answers import Answer
from opdlight.envs.base import TextEnv
from opdlight.errors import ConfigError, EngineError, PlainTextError
from opdlight.rollout.engines.base import Completion, Engine, Request, Sampling
from opdlight.rollout.env_pool import EnvPool
from opdlight.rollout.env_processes import ProcessPool
from opdlight.rollout.env_threads import ThreadPool
from opdlight.rollout.episode import Episode, sampling_seed_of
from opdlight.rollout.rendering import ChatRenderer
from opdlight.types import RolloutRequest, Status, Trajectory

log = logging.getLogger(__name__)
PATIENCE = 0.001  # seconds that an engine on the environments' cores waits for each answer, to decode that turn as well


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a task's trajectories."""

    turn_tokens: int  # longest completion of one turn, in tokens
    trajectory_tokens: int  # longest context of a conversation: prompts, observations and completions
    env_seconds: float = math.inf  # longest reset or step of the environment; a longer one ends as env_error


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStats:
    """Figures of one call of `Collector.collect`."""

    seconds: float
    turns: int
    generated_tokens: int  # by the student
    prompt_tokens: int  # sum over turns of the prompt length, cached tokens included
    env_errors: int  # trajectories that ended because their environment raised
    row_splits: int  # training rows that a rewritten history began

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second of wall time, environments included."""
        return self.generated_tokens / max(self.seconds, 1e-9)


class Collector:
    """Rolls the student out in the environments of its tasks.

    Args:
        engine: generates; only the thread that calls `collect` uses it. The caller closes it.
        renderer: turns conversations into token ids.
        make_env: task name → a new environment. Instances are reused for further episodes of the task.
        limits: limits by task.
        env_threads: number of threads in which environments reset and step, if there are no workers for it.
        env_workers: number of processes in which they do; `make_env` is pickled for them. 0: in threads.
        max_active: most trajectories that are rolled out at the same time; the others wait.

    Raises:
        ConfigError: naming a limit that is out of bounds or exceeds the engine's context.
    """

    def __init__(
        self,
        engine: Engine,
        renderer: ChatRenderer,
        make_env: Callable[[str], TextEnv],
        limits: Mapping[str, Limits],
        env_threads: int,
        env_workers: int = 0,
        max_active: int = 512,
    ) -> None:
        for task, limit in limits.items():
            key = f"task.tasks.{task}"
            if limit.turn_tokens < 1:
                raise ConfigError.wrong(f"{key}.turn_tokens", expected="an integer ≥ 1", got=limit.turn_tokens)
            if not limit.env_seconds > 0:
                raise ConfigError.wrong(f"{key}.env_seconds", expected="a positive number", got=limit.env_seconds)
            if not 2 <= limit.trajectory_tokens <= engine.max_model_len:
                expected = f"between 2 and `engine.max_model_len` = {engine.max_model_len}"
                raise ConfigError.wrong(f"{key}.trajectory_tokens", expected=expected, got=limit.trajectory_tokens)
        if max_active < 1:
            raise ConfigError.wrong("max_active", expected="an integer ≥ 1", got=max_active)
        self.engine, self.renderer, self.limits, self.max_active = engine, renderer, dict(limits), max_active
        self.last: RolloutStats | None = None  # of the last `collect`
        self._cancelled = False
        seconds = {task: limit.env_seconds for task, limit in limits.items()}
        self._envs: EnvPool = (
            ProcessPool(make_env, env_workers, seconds) if env_workers else ThreadPool(make_env, env_threads, seconds)
        )

    def prepare(self, requests: Sequence[RolloutRequest]) -> None:
        """Announce requests that will be collected soon, so that environments can prepare them in the background."""
        for task, seed in dict.fromkeys((r.task, r.seed) for r in requests):
            self._envs.prepare(task, seed)

    def collect(
        self,
        requests: Sequence[RolloutRequest],
        sampling: Sampling,
        *,
        sampling_seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Trajectory]:
        """Roll out every request and return the trajectories in the order of the requests.

        The same requests, weights, sampling and `sampling_seed` give the same trajectories, however turns are batched.
        An environment that raises ends its own trajectory with status env_error; so does one whose text spells a
        control token that the tokenizer cannot encode as ordinary text.

        Args:
            requests: what to roll out.
            sampling: the rollout policy.
            sampling_seed: the seeds of all turns depend on it.
            progress: called with the numbers of finished and of all trajectories whenever one finishes.

        Raises:
            ConfigError: for a task that has no limits.
            CancelledError: after `cancel`.
            EngineError: of the engine.
        """
        if unknown := sorted({r.task for r in requests} - set(self.limits)):
            raise ConfigError.wrong("requests", expected=f"of the tasks {sorted(self.limits)}", got=unknown)
        start = time.perf_counter()
        sampling = sampling.resolve(self.renderer.tokenizer)
        waiting = deque(enumerate(requests))
        live: dict[int, Episode] = {}
        finished: dict[int, Trajectory] = {}
        splits = 0
        if progress:
            progress(0, len(requests))

        def end(number: int, status: Status) -> None:
            nonlocal splits
            episode = live.pop(number)
            self._envs.finish(number)
            splits += episode.conversation.splits if episode.conversation else 0
            finished[number] = episode.trajectory(status)
            if progress:
                progress(len(finished), len(requests))

        try:
            while waiting or live:
                if self._cancelled:
                    raise CancelledError("the rollout was cancelled")
                while waiting and len(live) < self.max_active:
                    number, request = waiting.popleft()
                    live[number] = Episode(request)
                    self._envs.reset(number, request.task, request.seed)
                for number, answer in self._answers():
                    status = self._observe(number, live[number], answer)
                    if status := status or self._submit(number, live[number], sampling, sampling_seed):
                        end(number, status)
                for completion in self.engine.step() if self.engine.has_unfinished() else []:
                    number = int(completion.request_id.partition(".")[0])
                    if status := self._act(number, live[number], completion):
                        end(number, status)
        finally:
            if live:  # an exception was raised
                self._envs.abandon()
        trajectories = [finished[number] for number in range(len(requests))]
        self.last = _stats(trajectories, seconds=time.perf_counter() - start, splits=splits)
        return trajectories

    def cancel(self) -> None:
        """Make a `collect` that runs in another thread, and every later one, raise CancelledError."""
        self._cancelled = True

    def close(self) -> None:
        """Stop the environments and their threads or processes, but not the engine."""
        self._envs.close()

    def _answers(self) -> list[tuple[int, Answer]]:
        """The new answers of the environments; waits for long only if the engine has nothing to do."""
        idle = not self.engine.has_unfinished()
        if idle and not self._envs.in_flight:
            raise EngineError("The engine has no unfinished request, but trajectories still wait for a completion.")
        shares_cores = getattr(self.engine, "shares_cores", False)  # engines of one's own need not say
        return self._envs.answers(wait=idle, patience=PATIENCE if shares_cores else 0.0)

    def _observe(self, number: int, episode: Episode, answer: Answer) -> Status | None:
        """Process an answer of the environment; returns the status if the trajectory has ended with it, else None."""
        episode.end_turn(answer.reward, answer.metrics)
        for name, value in answer.metrics.items():
            episode.metrics[name] = episode.metrics.get(name, 0.0) + value
        if answer.error is not None:
            return Status.ENV_ERROR
        if answer.terminated or answer.truncated:
            if answer.success:
                return Status.SUCCESS
            return Status.FAILURE if answer.terminated else Status.TRUNCATED_TURNS
        try:
            if episode.conversation is None or episode.completion is None:
                episode.conversation = self.renderer.start(
                    answer.system_prompt, answer.observation, fresh_prompt=answer.fresh_prompt
                )
            else:
                episode.conversation.advance(episode.completion, answer.observation)
        except PlainTextError as error:
            request = episode.request
            log.error("Environment of task %r, in the episode of seed %d: %s", request.task, request.seed, error)
            return Status.ENV_ERROR
        return None

    def _submit(self, number: int, episode: Episode, sampling: Sampling, sampling_seed: int) -> Status | None:
        """Request the next completion; returns a status instead if the context is full."""
        assert episode.conversation is not None
        prompt_ids = episode.conversation.prompt_ids
        limits = self.limits[episode.request.task]
        room = limits.trajectory_tokens - len(prompt_ids)
        if room < 1:
            return Status.TRUNCATED_TOKENS
        turn = len(episode.turns)
        request = Request(
            request_id=f"{number}.{turn}",
            prompt_ids=prompt_ids,
            max_tokens=min(limits.turn_tokens, room),
            sampling=sampling,
            seed=sampling_seed_of(episode.request, turn, sampling_seed),
        )
        self.engine.add_request(request)
        return None

    def _act(self, number: int, episode: Episode, completion: Completion) -> Status | None:
        """Send the completion to the environment; returns a status instead if it was cut at the end of the context."""
        assert episode.conversation is not None
        episode.completion = completion
        length = len(episode.conversation.prompt_ids) + len(completion.token_ids)
        if completion.finish_reason == "length" and length >= self.limits[episode.request.task].trajectory_tokens:
            episode.end_turn(reward=0.0, metrics={})  # the environment never saw it
            return Status.TRUNCATED_TOKENS
        self._envs.step(number, episode.conversation.answer_text(completion))
        return None


def _stats(trajectories: Sequence[Trajectory], *, seconds: float, splits: int) -> RolloutStats:
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    return RolloutStats(
        seconds=seconds,
        turns=len(turns),
        generated_tokens=sum(len(t.completion_ids) for t in turns),
        prompt_tokens=sum(len(t.prompt_ids) for t in turns),
        env_errors=sum(t.status is Status.ENV_ERROR for t in trajectories),
        row_splits=splits,
    )
