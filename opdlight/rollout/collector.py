"""Environments × engine → trajectories. Continuous batching: a turn begins the moment its environment has answered."""

import hashlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field

from opdlight.envs.base import TextEnv
from opdlight.errors import ConfigError, EngineError, PlainTextError
from opdlight.rollout.engines.base import Completion, Engine, Request, Sampling
from opdlight.rollout.env_pool import Answer, EnvPool
from opdlight.rollout.rendering import ChatRenderer, Conversation
from opdlight.types import RolloutRequest, Status, Trajectory, Turn

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a task's trajectories may become, in tokens."""

    turn_tokens: int  # longest completion of one turn
    trajectory_tokens: int  # longest context: prompt, observations and completions of one conversation
    env_seconds: float = math.inf  # longest reset or step of the environment; then its trajectory ends as env_error


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStats:
    """Figures of one collection."""

    seconds: float
    turns: int
    generated_tokens: int  # sampled by the student
    prompt_tokens: int  # sent to the engine, summed over turns (cached ones included)
    env_errors: int  # trajectories that ended because their environment raised
    row_splits: int  # how often a rewritten history began a new training row

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second of wall time, environments included."""
        return self.generated_tokens / max(self.seconds, 1e-9)


@dataclass(slots=True)
class _Episode:
    """A trajectory in the making."""

    request: RolloutRequest
    conversation: Conversation | None = None
    completion: Completion | None = None  # generated, not yet answered by the environment
    turns: list[Turn] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def end_turn(self, reward: float) -> None:
        """Record the turn that the environment has answered, or that ended the trajectory."""
        if self.completion is None or self.conversation is None:
            return
        turn = Turn(
            prompt_ids=self.conversation.prompt_ids,
            completion_ids=self.completion.token_ids,
            sampled_logprobs=self.completion.logprobs,
            finish_reason=self.completion.finish_reason,
            policy_version=self.completion.policy_version,
            reward=reward,
        )
        self.turns.append(turn)


def sampling_seed_of(request: RolloutRequest, turn: int, sampling_seed: int) -> int:
    """The sampling seed in [0, 2⁶³) of one turn; a function of its arguments alone, the same on every machine."""
    parts = (sampling_seed, request.task, request.seed, request.group, request.sample, turn)
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


class Collector:
    """Rolls the student out in the environments of its tasks.

    Args:
        engine: generates; used by the thread that calls `collect`, and by no other.
        renderer: turns conversations into token ids.
        make_env: task name → a new environment. Instances are reused between episodes of a task.
        limits: token limits by task.
        env_threads: how many environments reset or step at once, beside the engine.
        max_active: how many trajectories are under way at once; the others wait for their turn.
    """

    def __init__(
        self,
        engine: Engine,
        renderer: ChatRenderer,
        make_env: Callable[[str], TextEnv],
        limits: Mapping[str, Limits],
        env_threads: int,
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
        self.last: RolloutStats | None = None  # figures of the last collection
        self._cancelled = False
        self._envs = EnvPool(make_env, env_threads, {task: limit.env_seconds for task, limit in limits.items()})

    def prepare(self, requests: Sequence[RolloutRequest]) -> None:
        """Hint that these requests will be collected soon: environments build what is slow in the background."""
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
        """Roll out every request; trajectories come in the order of the requests.

        The same requests, weights, sampling and `sampling_seed` give the same trajectories, however turns were batched.
        An environment that raises ends its own trajectory (status env_error) and no other; so does one whose text
        spells a control token that the tokenizer cannot write as ordinary text.
        `progress` is called with (finished, wanted) trajectories whenever one finishes.
        """
        if unknown := sorted({r.task for r in requests} - set(self.limits)):
            raise ConfigError.wrong("requests", expected=f"of the tasks {sorted(self.limits)}", got=unknown)
        start = time.perf_counter()
        sampling = sampling.resolve(self.renderer.tokenizer)
        waiting = deque(enumerate(requests))
        live: dict[int, _Episode] = {}
        finished: dict[int, Trajectory] = {}
        splits = 0
        if progress:
            progress(0, len(requests))

        def end(number: int, status: Status) -> None:
            nonlocal splits
            episode = live.pop(number)
            self._envs.finish(number)
            splits += episode.conversation.splits if episode.conversation else 0
            finished[number] = _trajectory(episode, status)
            if progress:
                progress(len(finished), len(requests))

        try:
            while waiting or live:
                if self._cancelled:
                    raise CancelledError("the rollout was given up")
                while waiting and len(live) < self.max_active:
                    number, request = waiting.popleft()
                    live[number] = _Episode(request)
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
            if live:  # an exception is on its way
                self._envs.abandon()
        trajectories = [finished[number] for number in range(len(requests))]
        self.last = _stats(trajectories, seconds=time.perf_counter() - start, splits=splits)
        return trajectories

    def cancel(self) -> None:
        """Let a `collect` of another thread end with CancelledError; from then on nothing is collected."""
        self._cancelled = True

    def close(self) -> None:
        """Stop the threads and close the environments; the engine belongs to the caller."""
        self._envs.close()

    def _answers(self) -> list[tuple[int, Answer]]:
        """What the environments said. Sleeps only if the engine has nothing to do."""
        idle = not self.engine.has_unfinished()
        if idle and not self._envs.in_flight:
            raise EngineError("The engine has no unfinished request, but trajectories still wait for a completion.")
        return self._envs.answers(wait=idle)

    def _observe(self, number: int, episode: _Episode, answer: Answer) -> Status | None:
        """Take an environment's answer; returns how the trajectory ended, or None if it goes on."""
        episode.end_turn(answer.reward)
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
                env = self._envs.env(number)
                episode.conversation = self.renderer.start(
                    env.system_prompt, answer.observation, fresh_prompt=env.fresh_prompt
                )
            else:
                episode.conversation.advance(episode.completion, answer.observation)
        except PlainTextError as error:
            request = episode.request
            log.error("Environment of task %r, in the episode of seed %d: %s", request.task, request.seed, error)
            return Status.ENV_ERROR
        return None

    def _submit(self, number: int, episode: _Episode, sampling: Sampling, sampling_seed: int) -> Status | None:
        """Ask the engine for the next turn, unless the context is full."""
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

    def _act(self, number: int, episode: _Episode, completion: Completion) -> Status | None:
        """Send the completion to its environment, unless it was cut because the context is full."""
        assert episode.conversation is not None
        episode.completion = completion
        length = len(episode.conversation.prompt_ids) + len(completion.token_ids)
        if completion.finish_reason == "length" and length >= self.limits[episode.request.task].trajectory_tokens:
            episode.end_turn(reward=0.0)
            return Status.TRUNCATED_TOKENS
        self._envs.step(number, episode.conversation.said(completion))
        return None


def _trajectory(episode: _Episode, status: Status) -> Trajectory:
    return Trajectory(
        task=episode.request.task,
        group=episode.request.group,
        seed=episode.request.seed,
        turns=episode.turns,
        reward=sum(turn.reward for turn in episode.turns),
        status=status,
        metrics=episode.metrics,
        spelled_control_tokens=episode.conversation.spelled if episode.conversation else 0,
    )


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
