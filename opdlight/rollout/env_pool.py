"""Environments behind threads: the engine's thread sends actions and picks up answers, and no slow one holds it up."""

import logging
import queue
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from envs.base import TextEnv
from opdlight.errors import ConfigError, EnvError, MissingDependencyError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an environment said to a reset or an action."""

    observation: str = ""
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    success: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    error: Exception | None = None  # it raised: the episode is over


@dataclass(slots=True)
class _Episode:
    task: str
    seed: int
    env: TextEnv | None  # None until a thread has made it, and after it raised


class EnvPool:
    """Runs episodes, each under a number of the caller's choice, on `threads` threads; instances are reused by task.

    An instance is touched by one thread at a time: the caller sends the next action only after the last answer.
    """

    def __init__(self, make_env: Callable[[str], TextEnv], threads: int) -> None:
        if threads < 1:
            raise ConfigError.wrong("env_threads", expected="an integer ≥ 1", got=threads)
        self._make_env = make_env
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="env")
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="env-prepare")
        self._prepare_envs: dict[str, TextEnv] = {}  # touched by the preparer only
        self._idle: dict[str, list[TextEnv]] = {}
        self._episodes: dict[int, _Episode] = {}
        self._answers: queue.SimpleQueue[tuple[_Episode, int, Future[Answer]]] = queue.SimpleQueue()
        self._in_flight = 0

    def reset(self, number: int, task: str, seed: int) -> None:
        """Begin episode `number`; its first observation will be among the answers."""
        idle = self._idle.get(task)
        episode = self._episodes[number] = _Episode(task, seed, idle.pop() if idle else None)
        self._send(episode, number, lambda env: Answer(observation=_text(env.reset(seed=seed)[0])))

    def step(self, number: int, action: str) -> None:
        """Send an action; the environment's response will be among the answers."""
        self._send(self._episodes[number], number, lambda env: _step(env, action))

    def env(self, number: int) -> TextEnv:
        """The instance of a running episode that has answered."""
        env = self._episodes[number].env
        assert env is not None
        return env

    def answers(self, *, wait: bool) -> list[tuple[int, Answer]]:
        """The answers that have come since the last call; with `wait`, sleeps until there is one.

        Raises what a constructor raised, and ConfigError or MissingDependencyError of an environment: those would fail
        every episode. Anything else that an environment raises ends its own episode (`Answer.error`).
        """
        found: list[tuple[int, Answer]] = []
        while True:
            try:
                episode, number, future = self._answers.get(block=wait and not found)
            except queue.Empty:
                return found
            self._in_flight -= 1
            if self._episodes.get(number) is not episode:
                continue  # of an abandoned collection
            found.append((number, future.result()))

    @property
    def in_flight(self) -> int:
        """Resets and actions whose answers have not been picked up."""
        return self._in_flight

    def finish(self, number: int) -> None:
        """End an episode that has answered; its instance becomes free for another one."""
        episode = self._episodes.pop(number)
        if episode.env is not None:
            self._idle.setdefault(episode.task, []).append(episode.env)

    def abandon(self) -> None:
        """Forget every running episode with its instance: some may still be at work in their threads."""
        self._episodes.clear()

    def prepare(self, task: str, seed: int) -> None:
        """Tell the task's environments in the background that an episode with this seed will come."""
        self._preparer.submit(self._prepare, task, seed)

    def close(self) -> None:
        """Stop the threads and close every instance."""
        self._workers.shutdown(wait=True, cancel_futures=True)
        self._preparer.shutdown(wait=True, cancel_futures=True)
        running = [e.env for e in self._episodes.values() if e.env is not None]
        for env in [*running, *(e for idle in self._idle.values() for e in idle), *self._prepare_envs.values()]:
            env.close()
        self._episodes.clear()
        self._idle.clear()
        self._prepare_envs.clear()

    def _send(self, episode: _Episode, number: int, ask: Callable[[TextEnv], Answer]) -> None:
        self._in_flight += 1
        future = self._workers.submit(self._ask, episode, ask)
        future.add_done_callback(lambda done: self._answers.put((episode, number, done)))

    def _ask(self, episode: _Episode, ask: Callable[[TextEnv], Answer]) -> Answer:
        env = episode.env = episode.env or self._make_env(episode.task)
        try:
            return ask(env)
        except (ConfigError, MissingDependencyError):
            raise
        except Exception as error:
            log.error(
                "Environment of task %r failed in the episode of seed %d.", episode.task, episode.seed, exc_info=error
            )
            episode.env = None  # its state is unknown: the next episode gets a new instance
            try:
                env.close()
            except Exception as close_error:
                log.warning("A failed environment of task %r did not close.", episode.task, exc_info=close_error)
            return Answer(error=error)

    def _prepare(self, task: str, seed: int) -> None:
        try:
            if task not in self._prepare_envs:
                self._prepare_envs[task] = self._make_env(task)
            self._prepare_envs[task].prepare(seed)
        except Exception as error:  # only a hint: the reset itself will raise what is wrong
            log.warning("Environment of task %r could not prepare seed %d.", task, seed, exc_info=error)


def _text(observation: Any) -> str:
    if not isinstance(observation, str):
        raise EnvError(f"Expected the observation to be a string, but got {type(observation).__name__}.")
    return observation


def _step(env: TextEnv, action: str) -> Answer:
    observation, reward, terminated, truncated, info = env.step(action)
    if (terminated or truncated) and "success" not in info:
        raise EnvError(f'Expected info["success"] on the last step of {type(env).__name__}, but got {sorted(info)}.')
    return Answer(
        observation=_text(observation),
        reward=float(reward),
        terminated=bool(terminated),
        truncated=bool(truncated),
        success=bool(info.get("success", False)),
        metrics={name: float(value) for name, value in info.get("metrics", {}).items()},
    )
