"""Servers of OpenEnv environments, and episodes played on them."""

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import httpx2

import opdlight.envs  # noqa: F401
from opdlight.envs.openenv.env import OpenEnvEnv

ROOT = Path(__file__).parents[2]
FIVE = next(seed for seed in range(99) if random.Random(seed).randint(1, 9) == 5)  # the seed whose number is 5


@contextmanager
def real_server() -> Iterator[str]:
    """A server of the package openenv in a process of its own: of the Python in $OPENENV_PYTHON, for other versions."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    python = os.environ.get("OPENENV_PYTHON", sys.executable)
    command = [python, "-m", "uvicorn", "tests.envs.openenv_games:app", f"--port={port}", "--log-level=critical"]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert process.poll() is None, "the server did not start"
            try:
                httpx2.get(f"{url}/guess/health", trust_env=False)
                break
            except httpx2.TransportError:
                time.sleep(0.05)
        yield url
    finally:
        process.kill()
        process.wait()


def make(url: str, **arguments: Any) -> OpenEnvEnv:
    env = gymnasium.make("opdlight/OpenEnv-v0", url=url, **arguments).unwrapped
    assert isinstance(env, OpenEnvEnv)
    return env


def play(env: OpenEnvEnv, *actions: str, seed: int = FIVE) -> list[Any]:
    """First observation, then of each step: observation, reward, terminated, truncated, inadmissible, unparsable."""
    found: list[Any] = [env.reset(seed=seed)[0]]
    for action in actions:
        text, reward, terminated, truncated, info = env.step(action)
        counts = (info["metrics"]["inadmissible_actions"], info["metrics"]["unparsable_actions"])
        found.append((text, reward, terminated, truncated, *counts))
        if terminated or truncated:
            break
    env.close()
    return found
