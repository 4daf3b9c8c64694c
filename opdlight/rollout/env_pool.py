"""Environments behind threads: the engine's thread sends actions and picks up answers, and no slow one holds it up."""

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from opdlight.envs.base import TextEnv
from opdlight.errors import ConfigError, EnvError, MissingDependencyError

log = logging.getLogger(__name__)
POLL = 0.5  # seconds between looks at the clock while every environment thinks


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


@dataclass(slots=True, eq=False)
class _Ask:
    """A reset or an action on its way through a thread."""

    episode: _Episode
    number: int
    run: Callable[[TextEnv], Answer]
    started: float | None = None  # on the monotonic clock; None while it waits for a thread
    lost: bool = False  # it took too long: the answer, should it come, counts no more


class EnvPool:
    """Runs episodes, each under a number of the caller's choice, on `threads` threads; instances are reused by task.

    An instance is touched by one thread at a time: the caller sends the next action only after the last answer. One
    that takes longer than its task's limit is given up with its thread, and another thread takes that one's place.

    Args:
        make_env: task name → a new environment.
        threads: how many work at once.
        seconds: longest reset or step by task; none for a task that is not named.
    """

    def __init__(
        self, make_env: Callable[[str], TextEnv], threads: int, seconds: Mapping[str, float] | None = None
    ) -> None:
        if threads < 1:
            raise ConfigError.wrong("env_threads", expected="an integer ≥ 1", got=threads)
        self._make_env, self._seconds = make_env, dict(seconds or {})
        self._asks: queue.SimpleQueue[_Ask | None] = queue.SimpleQueue()
        self._threads: dict[threading.Thread, _Ask | None] = {}  # and what each is at work on
        for _ in range(threads):
            self._start_thread()
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="env-prepare")
        self._prepare_envs: dict[str, TextEnv] = {}  # touched by the preparer only
        self._idle: dict[str, list[TextEnv]] = {}
        self._episodes: dict[int, _Episode] = {}
        self._answers: queue.SimpleQueue[tuple[_Ask, Answer | BaseException]] = queue.SimpleQueue()
        self._asked: set[_Ask] = set()

    def reset(self, number: int, task: str, seed: int) -> None:
        """Begin episode `number`; its first observation will be among the answers."""
        idle = self._idle.get(task)
        episode = self._episodes[number] = _Episode(task, seed, idle.pop() if idle else None)
        self._send(episode, number, lambda env: _reset(env, seed))

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
                ask, answer = self._answers.get(block=wait and not found, timeout=POLL)
            except queue.Empty:
                found += self._overdue()
                if found or not wait:
                    return found
                continue
            if ask.lost:
                continue
            self._asked.remove(ask)
            if self._episodes.get(ask.number) is not ask.episode:
                continue  # of an abandoned collection
            if isinstance(answer, BaseException):
                raise answer
            found.append((ask.number, answer))

    @property
    def in_flight(self) -> int:
        """Resets and actions whose answers have not been picked up."""
        return len(self._asked)

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
        """Stop the threads and close every instance; one that is over its limit is left behind."""
        while not self._asks.empty():
            self._asks.get()
        for _ in self._threads:
            self._asks.put(None)
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
        sent = _Ask(episode, number, ask)
        self._asked.add(sent)
        self._asks.put(sent)

    def _start_thread(self) -> None:
        thread = threading.Thread(
            target=self._work, name="env", daemon=True
        )  # the process does not wait for a hung one
        self._threads[thread] = None
        thread.start()

    def _work(self) -> None:
        me = threading.current_thread()
        while (ask := self._asks.get()) is not None:
            ask.started = time.monotonic()
            self._threads[me] = ask
            try:
                answer: Answer | BaseException = self._ask(ask.episode, ask.run)
            except BaseException as error:  # noqa: BLE001  raised where the answers are picked up
                answer = error
            if ask.lost:
                return  # another thread has taken this one's place
            self._threads[me] = None
            self._answers.put((ask, answer))

    def _is_overdue(self, ask: _Ask | None) -> bool:
        if ask is None or ask.started is None:
            return False
        return time.monotonic() - ask.started > self._seconds.get(ask.episode.task, float("inf"))

    def _overdue(self) -> list[tuple[int, Answer]]:
        """Give up what takes too long: its episode ends as if the environment had raised."""
        found = []
        for thread, ask in list(self._threads.items()):
            if ask is None or ask not in self._asked or not self._is_overdue(ask):
                continue
            ask.lost = True
            self._asked.remove(ask)
            del self._threads[thread]
            self._start_thread()
            task, seed, limit = ask.episode.task, ask.episode.seed, self._seconds[ask.episode.task]
            error = EnvError(
                f"The environment of task {task!r} took longer than {limit:g} s in the episode of seed {seed}."
            )
            log.error("%s It is given up; `task.tasks.%s.env_seconds` is the limit.", error, task)
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


def _text(text: Any, what: str = "observation") -> str:
    if not isinstance(text, str):
        raise EnvError(f"Expected the {what} to be a string, but got {type(text).__name__}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which no tokenizer can write
        raise EnvError(f"Expected the {what} to be text that UTF-8 can encode: {error}.") from error
    return str(text)  # of a subclass the plain text: templates and tokenizers tell them apart


def _finite(number: Any, what: str) -> float:
    if not math.isfinite(value := float(number)):
        raise EnvError(f"Expected {what} to be a finite number, but got {value}.")
    return value


def _reset(env: TextEnv, seed: int) -> Answer:
    observation = _text(env.reset(seed=seed)[0])
    if env.system_prompt is not None:
        _text(env.system_prompt, "system prompt")
    return Answer(observation=observation)


def _step(env: TextEnv, action: str) -> Answer:
    observation, reward, terminated, truncated, info = env.step(action)
    if (terminated or truncated) and "success" not in info:
        raise EnvError(f'Expected info["success"] on the last step of {type(env).__name__}, but got {sorted(info)}.')
    return Answer(
        observation=_text(observation),
        reward=_finite(reward, "the reward"),
        terminated=bool(terminated),
        truncated=bool(truncated),
        success=bool(info.get("success", False)),
        metrics={
            _text(name, "name of a metric"): _finite(value, f"the metric {name!r}")
            for name, value in info.get("metrics", {}).items()
        },
    )
