"""Environments in threads: the engine's thread sends actions and receives answers without waiting for slow ones."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from opdlight.envs.base import TextEnv
from opdlight.errors import ConfigError, EnvError, MissingDependencyError
from opdlight.rollout.env_answers import Answer, reset, step

log = logging.getLogger(__name__)
POLL = 0.5  # seconds between checks for environments that exceed their time limit


@dataclass(slots=True)
class _Episode:
    task: str
    seed: int
    env: TextEnv | None  # None until a thread has made it, and after it has raised


@dataclass(slots=True, eq=False)
class _Call:
    """A reset or a step that a thread runs."""

    episode: _Episode
    number: int
    run: Callable[[TextEnv], Answer]
    started: float | None = None  # time.monotonic() when it began; None while it waits for a thread
    timed_out: bool = False  # its answer will be ignored


class EnvPool:
    """Runs episodes in threads; the caller chooses a number for each. Instances are reused for episodes of a task.

    Only one thread at a time uses an instance, because the caller sends an action only after the answer to the one
    before. A reset or step that exceeds its task's time limit is abandoned with its thread, which a new one replaces.

    Args:
        make_env: task name → a new environment.
        threads: number of threads.
        seconds: task → longest reset or step; a task that is missing has no limit.

    Raises:
        ConfigError: if `threads` is below 1.
    """

    def __init__(
        self, make_env: Callable[[str], TextEnv], threads: int, seconds: Mapping[str, float] | None = None
    ) -> None:
        if threads < 1:
            raise ConfigError.wrong("env_threads", expected="an integer ≥ 1", got=threads)
        self._make_env, self._seconds = make_env, dict(seconds or {})
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._threads: dict[threading.Thread, _Call | None] = {}  # thread → the call that it runs
        for _ in range(threads):
            self._start_thread()
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="env-prepare")
        self._prepare_envs: dict[str, TextEnv] = {}  # used by the preparer's thread only
        self._idle: dict[str, list[TextEnv]] = {}
        self._episodes: dict[int, _Episode] = {}
        self._answers: queue.SimpleQueue[tuple[_Call, Answer | BaseException]] = queue.SimpleQueue()
        self._pending: set[_Call] = set()

    def reset(self, number: int, task: str, seed: int) -> None:
        """Begin episode `number`; `answers` will return its first observation."""
        idle = self._idle.get(task)
        episode = self._episodes[number] = _Episode(task, seed, idle.pop() if idle else None)
        self._send(episode, number, lambda env: reset(env, seed))

    def step(self, number: int, action: str) -> None:
        """Send an action to episode `number`; `answers` will return the environment's response."""
        self._send(self._episodes[number], number, lambda env: step(env, action))

    def env(self, number: int) -> TextEnv:
        """The instance of a running episode; it must have answered."""
        env = self._episodes[number].env
        assert env is not None
        return env

    def answers(self, *, wait: bool) -> list[tuple[int, Answer]]:
        """The answers that have arrived since the last call, as (episode number, answer); `wait` waits for the first.

        An error that would end every episode is raised: any error of a constructor, and ConfigError and
        MissingDependencyError of a reset or step. Any other error of an environment is its `Answer.error`.
        """
        found: list[tuple[int, Answer]] = []
        while True:
            try:
                ask, answer = self._answers.get(block=wait and not found, timeout=POLL)
            except queue.Empty:
                found += self._overdue()
                if found or not wait:
                    return found
                continue
            if ask.timed_out:
                continue
            self._pending.remove(ask)
            if self._episodes.get(ask.number) is not ask.episode:
                continue  # its episode was abandoned
            if isinstance(answer, BaseException):
                raise answer
            found.append((ask.number, answer))

    @property
    def in_flight(self) -> int:
        """The number of resets and steps whose answers have not been received."""
        return len(self._pending)

    def finish(self, number: int) -> None:
        """End an episode that has answered; its instance can be used for another one."""
        episode = self._episodes.pop(number)
        if episode.env is not None:
            self._idle.setdefault(episode.task, []).append(episode.env)

    def abandon(self) -> None:
        """Drop all running episodes and their instances, which threads may still be using."""
        self._episodes.clear()

    def prepare(self, task: str, seed: int) -> None:
        """In the background, let an environment of the task prepare the episode with this seed."""
        self._preparer.submit(self._prepare, task, seed)

    def close(self) -> None:
        """Stop the threads and close every instance, except one whose call exceeds its time limit."""
        while not self._calls.empty():
            self._calls.get()
        for _ in self._threads:
            self._calls.put(None)
        for thread in list(self._threads):
            while thread.is_alive() and not self._is_overdue(self._threads.get(thread)):
                thread.join(POLL)
        self._preparer.shutdown(wait=True, cancel_futures=True)
        running = [e.env for e in self._episodes.values() if e.env is not None]
        for env in [*running, *(e for idle in self._idle.values() for e in idle), *self._prepare_envs.values()]:
            env.close()
        self._episodes.clear()
        self._idle.clear()
        self._prepare_envs.clear()

    def _send(self, episode: _Episode, number: int, ask: Callable[[TextEnv], Answer]) -> None:
        sent = _Call(episode, number, ask)
        self._pending.add(sent)
        self._calls.put(sent)

    def _start_thread(self) -> None:
        thread = threading.Thread(
            target=self._work, name="env", daemon=True
        )  # daemon: a hung environment does not keep the process alive
        self._threads[thread] = None
        thread.start()

    def _work(self) -> None:
        me = threading.current_thread()
        while (ask := self._calls.get()) is not None:
            ask.started = time.monotonic()
            self._threads[me] = ask
            try:
                answer: Answer | BaseException = self._ask(ask.episode, ask.run)
            except BaseException as error:  # noqa: BLE001  `answers` raises it
                answer = error
            if ask.timed_out:
                return  # another thread has replaced this one
            self._threads[me] = None
            self._answers.put((ask, answer))

    def _is_overdue(self, ask: _Call | None) -> bool:
        if ask is None or ask.started is None:
            return False
        return time.monotonic() - ask.started > self._seconds.get(ask.episode.task, float("inf"))

    def _overdue(self) -> list[tuple[int, Answer]]:
        """Abandon the calls that exceed their time limit; their episodes end as if the environment had raised."""
        found = []
        for thread, ask in list(self._threads.items()):
            if ask is None or ask not in self._pending or not self._is_overdue(ask):
                continue
            ask.timed_out = True
            self._pending.remove(ask)
            del self._threads[thread]
            self._start_thread()
            task, seed, limit = ask.episode.task, ask.episode.seed, self._seconds[ask.episode.task]
            error = EnvError(
                f"The environment of task {task!r} took longer than {limit:g} s in the episode of seed {seed}."
            )
            log.error("%s It is abandoned; `task.tasks.%s.env_seconds` is the limit.", error, task)
            if self._episodes.get(ask.number) is ask.episode:
                ask.episode.env = None
                found.append((ask.number, Answer(error=error)))
        return found

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
            episode.env = None  # never reused: its state is unknown
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
        except Exception as error:  # preparing is optional: a real error comes again in the reset
            log.warning("Environment of task %r could not prepare seed %d.", task, seed, exc_info=error)
