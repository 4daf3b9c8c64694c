"""Environments of a rollout: the engine's thread sends actions and receives answers without waiting for slow ones."""

import logging
import queue
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opdlight.envs.answers import Answer
from opdlight.errors import EnvError

log = logging.getLogger(__name__)
POLL = 0.5  # seconds between checks for environments that exceed their time limit


@dataclass(slots=True, eq=False)
class Episode:
    """An episode that a pool plays."""

    task: str
    seed: int
    place: Any = None  # where it is played: the pool's own


@dataclass(slots=True, eq=False)
class Call:
    """A reset or a step, until its answer has come."""

    episode: Episode
    number: int
    action: str | None = None  # None: the reset


class EnvPool(ABC):
    """Plays episodes elsewhere than in the caller's thread; the caller chooses a number for each.

    The caller sends an action only after the answer to the one before, so an environment has one call at a time.

    Args:
        seconds: task → longest reset or step; a task that is missing has no limit.
    """

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self.seconds = dict(seconds or {})
        self._episodes: dict[int, Episode] = {}
        self._received: queue.SimpleQueue[tuple[Call, Answer | BaseException]] = queue.SimpleQueue()
        self._pending: set[Call] = set()
        self._asked = False  # since the last `answers`

    def reset(self, number: int, task: str, seed: int) -> None:
        """Begin episode `number`; `answers` will return its first observation."""
        self._episodes[number] = Episode(task, seed)
        self._ask(number, None)

    def step(self, number: int, action: str) -> None:
        """Send an action to episode `number`; `answers` will return the environment's response."""
        self._ask(number, action)

    def answers(self, *, wait: bool, patience: float = 0.0) -> list[tuple[int, Answer]]:
        """The answers that have arrived since the last call, as (episode number, answer).

        An error that would end every episode is raised: any error of a constructor, and ConfigError and
        MissingDependencyError of a reset or step. Any other error of an environment is its `Answer.error`.

        Args:
            wait: wait for the first, however long it takes.
            patience: seconds to wait for each further one, if something was asked since the last call.
        """
        found: list[tuple[int, Answer]] = []
        patience, self._asked = (patience if self._asked else 0.0), False
        while True:
            pause = POLL if wait and not found else patience if self._pending else 0.0
            try:
                call, answer = self._received.get(block=pause > 0, timeout=pause)
            except queue.Empty:
                for overdue in self._overdue():
                    found += self._take(overdue, Answer(error=self._too_slow(overdue.episode)))
                if found or not wait:
                    return found
            else:
                found += self._take(call, answer)

    @property
    def in_flight(self) -> int:
        """The number of resets and steps whose answers have not been received."""
        return len(self._pending)

    def finish(self, number: int) -> None:
        """End an episode that has answered; its environment can be used for another one."""
        self._free(self._episodes.pop(number))

    def abandon(self) -> None:
        """Drop all running episodes and their environments, which may still be at work."""
        self._episodes.clear()

    @abstractmethod
    def prepare(self, task: str, seed: int) -> None:
        """In the background, let an environment of the task prepare the episode with this seed."""

    @abstractmethod
    def close(self) -> None:
        """Close every environment, except one that hangs."""

    @abstractmethod
    def _send(self, call: Call) -> None:
        """Let the call be done; its answer goes to `_received`, with an error that would end every episode as such."""

    @abstractmethod
    def _free(self, episode: Episode) -> None:
        """The environment of an episode may be used for another one."""

    def _overdue(self) -> list[Call]:
        """The calls that have exceeded their time limit and are given up; none in a pool that answers them itself."""
        return []

    def _ask(self, number: int, action: str | None) -> None:
        call = Call(self._episodes[number], number, action)
        self._pending.add(call)
        self._asked = True
        self._send(call)

    def _take(self, call: Call, answer: Answer | BaseException) -> list[tuple[int, Answer]]:
        """What `answers` returns of a call that is answered; nothing if it has been given up or abandoned."""
        if call not in self._pending:
            return []
        self._pending.remove(call)
        if self._episodes.get(call.number) is not call.episode:
            return []
        if isinstance(answer, BaseException):
            raise answer
        if (error := answer.error) is not None:
            task, seed = call.episode.task, call.episode.seed
            log.error("Environment of task %r failed in the episode of seed %d.", task, seed, exc_info=error)
        return [(call.number, answer)]

    def _too_slow(self, episode: Episode) -> EnvError:
        """The error of a call that exceeds the time limit of its task."""
        task, limit = episode.task, self.seconds[episode.task]
        return EnvError(
            f"The environment of task {task!r} took longer than {limit:g} s in the episode of seed {episode.seed}. "
            f"It is abandoned; `task.tasks.{task}.env_seconds` is the limit."
        )
