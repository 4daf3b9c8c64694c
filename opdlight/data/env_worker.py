"""A process that plays episodes for a rollout, and no more: it imports neither torch nor an engine.

`opdlight.rollout.env_processes` starts it and sends requests through a pipe: the name of a method of `Instances` and
its arguments. `reset` and `step` are answered by an `Answer`, or by an error that would end every episode.
"""

import logging
import pickle
import signal
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any

from opdlight.envs.answers import Answer, attempt, reset, step
from opdlight.envs.base import TextEnv
from opdlight.errors import ConfigError, EnvError, MissingDependencyError
from opdlight.system.parents import end_with_parent

log = logging.getLogger(__name__)
ANSWERED = ("reset", "step")  # the requests that the other side waits for


class Instances:
    """The environments of this process; they are reused for further episodes of their task.

    Args:
        make_env: task name → a new environment.
    """

    def __init__(self, make_env: Callable[[str], TextEnv]) -> None:
        self.make_env = make_env
        self.running: dict[int, tuple[str, TextEnv]] = {}  # number of the episode → task and environment
        self.idle: dict[str, list[TextEnv]] = {}

    def start(self, tasks: Iterable[str]) -> None:
        """Make an environment of each task, so that the first episode need not wait for imports and files."""
        for task in tasks:
            try:
                self.idle.setdefault(task, []).append(self.make_env(task))
            except Exception:  # noqa: BLE001  it comes again in the first reset, which is answered
                return

    def reset(self, number: int, task: str, seed: int) -> Answer:
        """Begin an episode."""
        idle = self.idle.get(task)
        env = idle.pop() if idle else self.make_env(task)
        self.running[number] = task, env
        return self._attempt(number, lambda env: reset(env, seed))

    def step(self, number: int, action: str) -> Answer:
        """Go on with an episode."""
        if number not in self.running:
            return Answer(error=EnvError("The process that played this episode has ended, and the episode with it."))
        return self._attempt(number, lambda env: step(env, action))

    def finish(self, number: int) -> None:
        """End an episode; its environment can be used for another one."""
        if number in self.running:
            task, env = self.running.pop(number)
            self.idle.setdefault(task, []).append(env)

    def prepare(self, task: str, seed: int) -> None:
        """Let an environment of the task prepare the episode with this seed."""
        try:
            idle = self.idle.setdefault(task, [])
            if not idle:
                idle.append(self.make_env(task))
            idle[-1].prepare(seed)
        except Exception as error:  # preparing is optional: a real error comes again in the reset
            log.warning("Environment of task %r could not prepare seed %d.", task, seed, exc_info=error)

    def close(self) -> None:
        """Close every environment."""
        for env in [*(env for _, env in self.running.values()), *(env for idle in self.idle.values() for env in idle)]:
            env.close()

    def _attempt(self, number: int, call: Callable[[TextEnv], Answer]) -> Answer:
        answer = attempt(self.running[number][1], call)
        if answer.error is None:
            return answer
        del self.running[number]
        return Answer(error=sendable(answer.error))


def sendable(error: Exception) -> Exception:
    """The error as another process can receive it: its traceback is a note, and what cannot be pickled a text."""
    if isinstance(error, (ConfigError, MissingDependencyError)):
        return error
    where = "".join(traceback.format_exception(error)).rstrip()
    try:
        sent: Exception = pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  a class of the environment may fail in any way
        sent = EnvError(f"{type(error).__name__}: {error}")
    sent.add_note(f"In the process of the environment:\n{where}")
    return sent


def serve(connection: "Connection[Any, Any]", instances: Instances) -> None:
    """Answer requests until the other side closes the pipe or asks for the end."""
    while True:
        try:
            name, *arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = getattr(instances, name)(*arguments)
        except Exception as error:  # noqa: BLE001  of a constructor, or one that would end every episode
            answer = sendable(error)
        if name in ANSWERED:
            connection.send(answer)
        if name == "close":
            return


def main(pipe: int) -> None:
    """The process: `pipe` is the file descriptor of its end."""
    # a terminal sends Ctrl-C to all processes, a scheduler SIGTERM: the parent stops its workers in order
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()
    connection: Connection[Any, Any] = Connection(pipe)
    pickled = connection.recv_bytes()
    try:
        make_env = pickle.loads(pickled)
    except Exception as error:  # noqa: BLE001  the first reset raises it
        failed = sendable(error)

        def make_env(task: str) -> TextEnv:
            raise failed

    connection.send(None)  # ready: from now on time counts
    serve(connection, Instances(make_env))
