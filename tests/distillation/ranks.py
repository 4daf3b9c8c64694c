"""Runs a function in several processes, as the ranks of a run on some nodes."""

import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.forked import HANGS, processes


def run_ranks(
    work: Callable[..., None],
    *arguments: Any,
    nodes: int,
    each: int,
    logs: Path,
    meanwhile: Callable[[Sequence[Any]], None] = lambda started: None,
) -> str:
    """Call `work(rank, *arguments)` on `nodes` × `each` processes; returns what the first one has printed."""
    port = free_port()
    logs.mkdir(parents=True, exist_ok=True)
    ranks = range(nodes * each)
    started = [
        processes.Process(target=_rank, args=(rank, each, port, str(logs / f"{rank}.log"), work, arguments))
        for rank in ranks
    ]
    for process in started:
        process.start()
    meanwhile(started)
    for process in started:
        process.join(HANGS)
    said = [(logs / f"{rank}.log").read_text() for rank in ranks]
    assert [process.exitcode for process in started] == [0] * len(ranks), "\n".join(text[-2000:] for text in said)
    return said[0]


def free_port() -> int:
    """A port of this machine that nobody listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _rank(rank: int, each: int, port: int, log: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"NODE_RANK": str(rank // each), "LOCAL_RANK": str(rank % each)}
    torch.set_num_threads(1)
    try:
        work(rank, *arguments)
    except BaseException as error:  # noqa: BLE001  the process ends anyway
        if isinstance(error, SystemExit) and not error.code:
            return
        traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)  # the others are not waited for
