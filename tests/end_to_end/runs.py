"""Small runs through the entry point, in processes that start fast and may be killed."""

import csv
import json
import multiprocessing.context
import os
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

from tests.forked import HANGS, processes

SMALL = [
    "task.schedule=mixed", "evaluate_teachers=false", "task.tasks.sums.episodes=2", "task.tasks.alfworld.episodes=2",
    "rollout.groups=4", "micro_batch_tokens=600", "engine._target_=tests.fakes.AnsweringEngine",
    "callbacks.checkpoints.every=2",
]  # fmt: skip
ONLY_CLOCKS = ("time/", "throughput/", "memory/")
RECORDS = ("trajectories.jsonl", "token_gaps.jsonl", "profile.csv")


def train(arguments: list[str], log: str) -> None:
    """`python -m opdlight.train` with these arguments, in a process of its own; the terminal is a file."""
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["opdlight.train", *arguments]
    from opdlight.train.__main__ import main

    main()


def start(folder: Path, *overrides: str) -> multiprocessing.context.ForkServerProcess:
    """Start a run in `folder`, or go on with the one that is there."""
    begun = (folder / "overrides.json").exists()
    arguments = [f"resume={folder}"] if begun else [*SMALL, *overrides, f"hydra.run.dir={folder}"]
    process = processes.Process(target=train, args=(arguments, f"{folder}.log"))
    process.start()
    return process


def finish(folder: Path, *overrides: str) -> None:
    """Run to the end."""
    process = start(folder, *overrides)
    process.join(HANGS)
    assert process.exitcode == 0, Path(f"{folder}.log").read_text()[-3000:]


def cpu_seconds(process: multiprocessing.context.ForkServerProcess) -> float:
    """CPU time of a process so far, 0 of one that is gone: how far it has come, on a quiet or a busy machine."""
    try:
        after_name = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def let_run(process: multiprocessing.context.ForkServerProcess, seconds: float) -> float:
    """Wait until the process has used so many seconds of CPU or has ended; returns how many it has used."""
    used, started = 0.0, time.monotonic()
    while process.exitcode is None and used < seconds:
        assert time.monotonic() - started < HANGS
        process.join(0.02)
        used = max(used, cpu_seconds(process))
    return used


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def assert_same_run(one: Path, two: Path) -> None:
    """Everything but the clocks is equal to the last digit: metrics, records, outcome, weights."""
    rows, others = metrics(one), metrics(two)
    assert len(rows) == len(others) > 3
    for row, other in zip(rows, others, strict=True):
        for key, value in row.items():
            assert key.startswith(ONLY_CLOCKS) or other[key] == value, (key, row["step"], value, other[key])
    for name in RECORDS:
        assert (one / name).read_text() == (two / name).read_text(), name
    outcome, other_outcome = (json.loads((f / "summary.json").read_text()) for f in (one, two))
    assert [outcome[key] == other_outcome[key] for key in ("tasks", "tokens")] == [True, True]
    assert outcome["seconds"].keys() - {"evaluate before"} == other_outcome["seconds"].keys() - {"evaluate before"}
    weights, theirs = (load_file(f / "student" / "model.safetensors") for f in (one, two))
    start = load_file("opdlight/assets/lab/student/model.safetensors")
    assert any((weights[name] != start[name]).any() for name in weights), "nothing was learnt"
    assert all((weights[name] == theirs[name]).all() for name in weights)
