"""A small environment and a scripted collector over it, for the tests of the collector."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from opdlight.envs.base import TextEnv
from opdlight.rollout.collector import Collector, Limits
from opdlight.rollout.engines.base import Sampling
from opdlight.rollout.engines.scripted import ScriptedEngine
from opdlight.rollout.rendering import ChatRenderer
from opdlight.types import RolloutRequest, Trajectory
from tests.tiny_models import character_tokenizer

END = 0
GO = [16, 24, END]  # "go</s>"
WAIT = 300.0  # seconds after which a test that hangs fails; a busy machine stays below


class Walk(TextEnv):
    """Ends after `seed % 10` turns, solved if `seed` is even; says what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()
        self.busy = threading.Lock()
        self.episodes = 0
        self.closed = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        assert self.busy.acquire(blocking=False), "two threads in one environment"
        super().reset(seed=seed)
        assert seed is not None
        self.left, self.solved, self.seed, self.heard = max(seed % 10, 1), seed % 2 == 0, seed, []
        self.episodes += 1
        self.busy.release()
        return "begin", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        assert self.busy.acquire(blocking=False), "two threads in one environment"
        self.threads.add(threading.get_ident())
        self.heard.append(action)
        self.left -= 1
        over = self.left == 0
        info: dict[str, Any] = {"metrics": {"steps": 1.0, "letters": float(len(action))}}
        if over:
            info["success"] = self.solved
        self.busy.release()
        return f"heard {action[:2]}", float(over and self.solved), over, False, info

    def close(self) -> None:
        self.closed = True


class Envs:
    """Makes environments and remembers them."""

    def __init__(self, make: Callable[[], TextEnv] = Walk) -> None:
        self.make, self.made = make, []  # type: ignore[var-annotated]

    def __call__(self, task: str) -> TextEnv:
        env = self.make()
        self.made.append(env)
        return env


def requests(*seeds: int, task: str = "walk") -> list[RolloutRequest]:
    return [RolloutRequest(task=task, seed=s, group=g) for g, s in enumerate(seeds)]


def collector(
    engine: ScriptedEngine,
    envs: Callable[[str], TextEnv] | None = None,
    *,
    turn: int = 8,
    context: int = 512,
    **kw: Any,
) -> Collector:
    limit = Limits(turn_tokens=turn, trajectory_tokens=context, env_seconds=kw.pop("env_seconds", 60.0))
    limits = {"walk": limit}
    return Collector(
        engine, ChatRenderer(character_tokenizer()), envs or Envs(), limits, kw.pop("env_threads", 4), **kw
    )


def roll(
    wanted: Sequence[RolloutRequest], engine: ScriptedEngine | None = None, envs: Any = None, **kw: Any
) -> list[Trajectory]:
    collecting = collector(engine or ScriptedEngine(lambda prompt: GO), envs, **kw)
    try:
        return collecting.collect(wanted, Sampling())
    finally:
        collecting.close()
