"""A Collector for the tasks of a config, and one that starts its own engine and ends it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from opdlight.data.tasks import Task
from opdlight.rollout.collector import Collector, Limits
from opdlight.rollout.engines.base import Engine
from opdlight.rollout.rendering import ChatRenderer
from opdlight.system.console import progress


def make_collector(
    engine: Engine,
    tokenizer: Any,
    tasks: Mapping[str, Task],
    env_threads: int,
    chat_template: Mapping[str, Any] | None = None,
) -> Collector:
    """Environments × engine for these tasks.

    Args:
        engine: generates; the caller closes it.
        tokenizer: of the model that the engine runs.
        tasks: by name.
        env_threads: how many environments reset or step at once.
        chat_template: what the chat template is given beside the messages.
    """
    return Collector(
        engine=engine,
        renderer=ChatRenderer(tokenizer, chat_template),
        make_env=lambda task: tasks[task].make_env(),
        limits={
            n: Limits(turn_tokens=t.turn_tokens, trajectory_tokens=t.trajectory_tokens, env_seconds=t.env_seconds)
            for n, t in tasks.items()
        },
        env_threads=env_threads,
    )


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
) -> Iterator[Collector]:
    """A collector whose engine starts with the block; both are closed at its end, after an error too.

    Args:
        start: makes the engine.
        tokenizer: of the model that the engine runs.
        tasks: by name.
        env_threads: how many environments reset or step at once.
        chat_template: what the chat template is given beside the messages.
    """
    with (
        open_engine(start) as engine,
        closing(make_collector(engine, tokenizer, tasks, env_threads, chat_template)) as collector,
    ):
        yield collector
