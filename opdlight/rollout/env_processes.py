"""Environments in processes of their own: heavy ones do not share the interpreter lock with trainer and engine."""

import math
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count, cycle
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any

from opdlight.envs.answers import Answer
from opdlight.envs.base import TextEnv
from opdlight.errors import ConfigError, EnvError
from opdlight.rollout.env_pool import Call, EnvPool, Episode

RECYCLED = 256  # episodes after which a process is replaced: what its environments have kept is freed
SAME_SEED = 4  # a process that knows an episode's seed (its game is built) may have so many episodes more than another
CLOSING = 5.0  # seconds for a process to close its environments before it is killed
_PROGRAM = "import sys; sys.path[:] = {path!r}; from opdlight.data.env_worker import main; main({pipe})"


class ProcessPool(EnvPool):
    """Plays episodes in worker processes, each with the environments of many episodes and one call at a time.

    A call that exceeds its task's time limit ends its process; so the episodes of that process end as env_error, as
    they do where a process is killed. Another process takes its place.

    Args:
        make_env: task name → a new environment; it is pickled, and its modules are imported in the processes.
        workers: how many processes; they start in the background.
        seconds: task → longest reset or step; a task that is missing has no limit.
        recycled: episodes after which a process that has none running is replaced.

    Raises:
        ConfigError: if `make_env` cannot be pickled.
    """

    def __init__(
        self,
        make_env: Callable[[str], TextEnv],
        workers: int,
        seconds: Mapping[str, float] | None = None,
        recycled: int = RECYCLED,
    ) -> None:
        super().__init__(seconds)
        try:
            pickled = pickle.dumps(make_env)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            expected = "0 for environments that cannot be sent to another process"
            raise ConfigError(f"Expected `env_workers` to be {expected}, but got {workers} ({error}).") from error
        self._workers = [_Worker(self, pickled, recycled) for _ in range(workers)]
        self._next = cycle(self._workers)
        self._numbers = count()  # of the episodes of all rollouts

    def prepare(self, task: str, seed: int) -> None:
        """In one of the processes, let an environment of the task prepare the episode with this seed."""
        worker = next(self._next)
        worker.seeds.add((task, seed))
        worker.requests.put(("prepare", task, seed))

    def close(self) -> None:
        """Close the environments and end the processes; one that is at work for too long is killed."""
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.join()

    def abandon(self) -> None:
        """Drop all running episodes; their environments stay as they are and are used again."""
        for episode in self._episodes.values():
            self._free(episode)
        super().abandon()

    def _send(self, call: Call) -> None:
        episode = call.episode
        if call.action is None:
            worker = min(self._workers, key=lambda w: w.live - SAME_SEED * ((episode.task, episode.seed) in w.seeds))
            worker.live += 1
            worker.seeds.add((episode.task, episode.seed))
            episode.place = worker, next(self._numbers)
        episode.place[0].requests.put(call)

    def _free(self, episode: Episode) -> None:
        worker, number = episode.place
        worker.live -= 1
        worker.requests.put(("finish", number))


class _Worker:
    """A process and the thread of this one that talks to it; as a child it ends with that thread."""

    def __init__(self, pool: ProcessPool, make_env: bytes, recycled: int) -> None:
        self._pool, self._make_env, self._recycled = pool, make_env, recycled
        self.live = 0  # episodes; known to the caller's thread, as `seeds` is
        self.seeds: set[tuple[str, int]] = set()  # that its environments may have built
        self.requests: SimpleQueue[Call | tuple[Any, ...] | None] = SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection[Any, Any]
        self._running: set[int] = set()  # numbers of the episodes that the process plays
        self._resets = 0
        self._thread = threading.Thread(target=self._run, name="env-worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Begin to end the process: requests that wait are dropped."""
        with suppress(Empty):
            while True:
                self.requests.get_nowait()
        self.requests.put(None)

    def join(self) -> None:
        """Wait for the end of the process; kill it if it takes too long."""
        self._thread.join(CLOSING)
        while self._thread.is_alive():
            if (process := self._process) is not None:
                _kill(process)
            self._thread.join(0.1)

    def _run(self) -> None:
        request: Call | tuple[Any, ...] | None = ("start", tuple(self._pool.seconds))
        while request is not None:
            try:
                answer: Answer | BaseException | None = self._do(request)
            except Exception as error:  # noqa: BLE001  `answers` raises it
                answer = error
            if isinstance(request, Call) and answer is not None:
                self._pool._received.put((request, answer))
            request = self.requests.get()
        self._end()

    def _do(self, request: Call | tuple[Any, ...]) -> Answer | BaseException | None:
        """Let the process do it, a new one if there is none."""
        process = self._process or self._begin()
        if not isinstance(request, Call):
            with suppress(OSError):  # it has died: the next call finds that out
                self._pipe.send(request)
            if request[0] == "finish":
                self._running.discard(request[1])
                if not self._running and self._resets >= self._recycled:
                    self._end()
            return None
        episode = request.episode
        number = episode.place[1]
        limit = self._pool.seconds.get(episode.task, math.inf)
        try:
            if request.action is None:
                self._resets += 1
                self._running.add(number)
                self._pipe.send(("reset", number, episode.task, episode.seed))
            else:
                self._pipe.send(("step", number, request.action))
            if self._pipe.poll(limit if limit < math.inf else None):
                return self._pipe.recv()
            _kill(process)
            error = self._pool._too_slow(episode)
        except (OSError, EOFError):
            error = EnvError(
                f"The process that played the episode of seed {episode.seed} of task {episode.task!r} has ended with "
                f"exit code {process.wait()}, as one does that runs out of memory or is killed."
            )
        self._end()
        return Answer(error=error)

    def _begin(self) -> subprocess.Popen[bytes]:
        ours, theirs = Pipe()
        with theirs:
            program = _PROGRAM.format(path=sys.path, pipe=theirs.fileno())
            # a session of its own: a terminal's Ctrl-C is for the trainer, which ends its workers in order
            process = subprocess.Popen(
                [sys.executable, "-c", program],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._process, self._pipe = process, ours
        self._running, self._resets, self.seeds = set(), 0, set()
        try:
            ours.send_bytes(self._make_env)
            ours.recv()  # its imports are done: they do not count for the time limit of a call
        except (OSError, EOFError) as error:
            self._process = None
            raise EnvError(f"A process for environments ended with exit code {process.wait()} at its start.") from error
        return process

    def _end(self) -> None:
        """End the process, if there is one."""
        if (process := self._process) is None:
            return
        with suppress(OSError):
            self._pipe.send(("close",))
        try:
            process.wait(CLOSING)
        except subprocess.TimeoutExpired:
            _kill(process)
            process.wait()
        self._pipe.close()
        self._process = None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, and those that its environments have started: it leads a session of its own."""
    if process.poll() is None:  # not reaped yet, so the number is still its own
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
