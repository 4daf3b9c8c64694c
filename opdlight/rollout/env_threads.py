"""Environments in threads of this process: for light ones, which cost no memory and no start of another process."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from opdlight.envs.answers import Answer, attempt, reset, step
from opdlight.envs.base import TextEnv
from opdlight.errors import ConfigError
from opdlight.rollout.env_pool import POLL, Call, EnvPool, Episode

log = logging.getLogger(__name__)


class ThreadPool(EnvPool):
    """Runs each reset and step in one of some threads. Environments are reused for further episodes of their task.

    A call that exceeds its task's time limit is abandoned with its thread, which a new one replaces.

    Args:
        make_env: task name → a new environment.
        threads: how many resets and steps run at once.
        seconds: task → longest reset or step; a task that is missing has no limit.

    Raises:
        ConfigError: if `threads` is below 1.
    """

    def __init__(
        self, make_env: Callable[[str], TextEnv], threads: int, seconds: Mapping[str, float] | None = None
    ) -> None:
        if threads < 1:
            raise ConfigError.wrong("env_threads", expected="an integer ≥ 1", got=threads)
        super().__init__(seconds)
        self._make_env = make_env
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._threads: dict[threading.Thread, tuple[Call, float] | None] = {}  # thread → its call, since when
        for _ in range(threads):
            self._start_thread()
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="env-prepare")
        self._prepare_envs: dict[str, TextEnv] = {}  # used by the preparer's thread only
        self._idle: dict[str, list[TextEnv]] = {}

    def prepare(self, task: str, seed: int) -> None:
        """In a thread of its own, let an environment of the task prepare the episode with this seed."""
        self._preparer.submit(self._prepare, task, seed)

    def close(self) -> None:
        """Stop the threads and close every environment, except one whose call exceeds its time limit."""
        while not self._calls.empty():
            self._calls.get()
        for _ in self._threads:
            self._calls.put(None)
        for thread in list(self._threads):
            while thread.is_alive() and not self._is_overdue(self._threads.get(thread)):
                thread.join(POLL)
        self._preparer.shutdown(wait=True, cancel_futures=True)
        running = [e.place for e in self._episodes.values() if e.place is not None]
        for env in [*running, *(e for idle in self._idle.values() for e in idle), *self._prepare_envs.values()]:
            env.close()
        self._episodes.clear()
        self._idle.clear()
        self._prepare_envs.clear()

    def _send(self, call: Call) -> None:
        idle = self._idle.get(call.episode.task)
        if call.action is None and idle:
            call.episode.place = idle.pop()
        self._calls.put(call)

    def _free(self, episode: Episode) -> None:
        if episode.place is not None:
            self._idle.setdefault(episode.task, []).append(episode.place)

    def _start_thread(self) -> None:
        # daemon: a hung environment does not keep the process alive
        thread = threading.Thread(target=self._work, name="env", daemon=True)
        self._threads[thread] = None
        thread.start()

    def _work(self) -> None:
        me = threading.current_thread()
        while (call := self._calls.get()) is not None:
            self._threads[me] = call, time.monotonic()
            try:
                answer: Answer | BaseException = self._play(call)
            except BaseException as error:  # noqa: BLE001  `answers` raises it
                answer = error
            if me not in self._threads:
                return  # the call took too long, and another thread has replaced this one
            self._threads[me] = None
            self._received.put((call, answer))

    def _play(self, call: Call) -> Answer:
        episode, action = call.episode, call.action
        env = episode.place = episode.place or self._make_env(episode.task)
        answer = attempt(env, lambda env: reset(env, episode.seed) if action is None else step(env, action))
        if answer.error is not None:
            episode.place = None
        return answer

    def _is_overdue(self, running: tuple[Call, float] | None) -> bool:
        if running is None:
            return False
        call, started = running
        return time.monotonic() - started > self.seconds.get(call.episode.task, float("inf"))

    def _overdue(self) -> list[Call]:
        found = []
        for thread, running in list(self._threads.items()):
            if running is not None and self._is_overdue(running):
                del self._threads[thread]
                self._start_thread()
                running[0].episode.place = None
                found.append(running[0])
        return found

    def _prepare(self, task: str, seed: int) -> None:
        try:
            if task not in self._prepare_envs:
                self._prepare_envs[task] = self._make_env(task)
            self._prepare_envs[task].prepare(seed)
        except Exception as error:  # preparing is optional: a real error comes again in the reset
            log.warning("Environment of task %r could not prepare seed %d.", task, seed, exc_info=error)
