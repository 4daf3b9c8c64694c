"""A Collector for the tasks of a config, and one that starts its own engine and ends it."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, Literal

from opdlight.data.tasks import Task, make_task_env
from opdlight.rollout.collector import Collector, Limits
from opdlight.rollout.engines.base import Engine
from opdlight.rollout.rendering import ChatRenderer
from opdlight.system.console import progress
from opdlight.system.distributed import world_size


def make_collector(
    engine: Engine,
    tokenizer: Any,
    tasks: Mapping[str, Task],
    env_threads: int,
    chat_template: Mapping[str, Any] | None = None,
    env_workers: int | Literal["auto"] = 0,
) -> Collector:
    """Environments × engine for these tasks.

    Args:
        engine: generates; the caller closes it.
        tokenizer: of the model that the engine runs.
        tasks: by name.
        env_threads: how many environments reset or step at once.
        chat_template: what the chat template is given beside the messages.
        env_workers: processes in which they do (`count_workers`); 0: threads of this one.
    """
    return Collector(
        engine=engine,
        renderer=ChatRenderer(tokenizer, chat_template),
        make_env=partial(make_task_env, dict(tasks)),
        limits={
            n: Limits(turn_tokens=t.turn_tokens, trajectory_tokens=t.trajectory_tokens, env_seconds=t.env_seconds)
            for n, t in tasks.items()
        },
        env_threads=env_threads,
        env_workers=count_workers(env_workers),
    )


def count_workers(wanted: int | Literal["auto"], nodes: int = 1) -> int:
    """The number of worker processes for the environments.

    Args:
        wanted: the key `env_workers`; "auto": a rank's share of the cores of its machine, less one for itself.
        nodes: machines of the run.
    """
    if wanted != "auto":
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(1, world_size() // nodes) - 1)


@contextmanager
def open_engine(start: Callable[[], Engine], title: str = "starting the engine") -> Iterator[Engine]:
    """An engine that is closed at the end of the block, after an error too; `title` is shown while it starts."""
    with progress(title):
        engine = start()
    with closing(engine):
        yield engine


@contextmanager
def open_collector(
    start: Callable[[], Engine],
    tokenizer: Any,
    tasks: Mapping[str, Task],
    env_threads: int,
    chat_template: Mapping[str, Any] | None = None,
    env_workers: int | Literal["auto"] = 0,
) -> Iterator[Collector]:
    """A collector whose engine starts with the block; both are closed at its end, after an error too.

    Args:
        start: makes the engine.
        tokenizer: of the model that the engine runs.
        tasks: by name.
        env_threads: how many environments reset or step at once.
        chat_template: what the chat template is given beside the messages.
        env_workers: processes in which they do (`count_workers`); 0: threads of this one.
    """
    with (
        open_engine(start) as engine,
        closing(make_collector(engine, tokenizer, tasks, env_threads, chat_template, env_workers)) as collector,
    ):
        yield collector
