"""Ray in this process: imported late, started or joined, with the process's state restored."""

import logging
import os
import random
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opdlight.errors import ConfigError, MissingDependencyError
from opdlight.system.distributed import world_size

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would send the working directory to every node
}


def import_ray() -> Any:
    """The package ray.

    Raises:
        MissingDependencyError: if it is not installed.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        with _process_state_restored():
            import ray
    except ImportError as error:
        raise MissingDependencyError.extra("The Ray engine", "ray") from error
    return ray


def start_ray(ray: Any, address: str | None) -> None:
    """Join the Ray cluster at `address`, or start one on this machine.

    Raises:
        ConfigError: naming `engine.address`, if there is no cluster, or if several processes would each start one.
    """
    if address is None and world_size() > 1:
        expected = "auto, or the address of a Ray cluster, which the trainer's processes share (`ray start --head`)"
        raise ConfigError.wrong("engine.address", expected=expected, got=address)
    options = {} if address else {"include_dashboard": False}
    host, _, port = (address or "").rpartition(":")
    try:
        if port.isdigit():  # ray.init would try an unreachable address for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        with _process_state_restored():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
    except OSError as error:
        if address is None:
            raise
        expected = "of a Ray cluster that runs (`ray start --head` starts one), or null"
        raise ConfigError.wrong("engine.address", expected=f"{expected} ({error})", got=address) from error


@contextmanager
def _process_state_restored() -> Iterator[None]:
    """Restore what starting Ray changes in this process: Python's random state and the handler of SIGTERM."""
    stream, handler = random.getstate(), signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        random.setstate(stream)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
