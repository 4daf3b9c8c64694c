"""A long run with faults: `python tools/soak.py --minutes 30` trains the lab models while parts of it are killed.

Environments raise and hang, actors of the rollout engine and the trainer are killed (kill -9), and SIGTERM comes; after
each the run is resumed with `resume=`. Every few seconds the memory and the open files of its processes are read. The
report says whether a step was lost or done twice, memory or open files grew, or a process is left; then exit code 1.

Linux only. The report, its CSV and the run are in --folder.
"""

import csv
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import psutil
from rich.console import Console
from rich.table import Table

from opdlight.envs.base import TextEnv
from opdlight.envs.wrapped import make_text_env
from opdlight.system.arguments import argument_parser

GROUPS = 16  # trajectories a step
RUN = [
    "task=agent_math", "loss=topk_rkl", "evaluate_teachers=false", f"rollout.groups={GROUPS}",
    "callbacks.checkpoints.every=5", "task.tasks.sums.episodes=16", "task.tasks.alfworld.episodes=16",
]  # fmt: skip
POOL = ["engine=ray", "+engine.engine.kv_cache_gib=0.1"]  # a small cache is full before growth is measured
FAULTS = ("kill", "kill actor", "kill actor", "SIGTERM")
WARM_UP = 60.0  # seconds of a process that say nothing about growth


def faulty(inner: str, share: float = 0.02, hang: float = 20.0, **arguments: Any) -> TextEnv:
    """The environment `inner`, which raises in one of 50 steps and in one of 2,500 hangs for `hang` seconds."""
    made = make_text_env(inner, **arguments)
    reset, step, draw = made.reset, made.step, random.Random()

    def seeded(*, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        draw.seed(seed)
        return reset(seed=seed, options=options)

    def sometimes(action: str) -> Any:
        value = draw.random()
        if value < share / 50:
            time.sleep(hang)
        elif value < share:
            raise RuntimeError("a fault of the soak")
        return step(action)

    made.reset, made.step = seeded, sometimes  # type: ignore[method-assign]
    return made


gymnasium.register(id="Faulty-v0", entry_point="tools.soak:faulty")


def faulty_tasks() -> list[str]:
    """Overrides that put `faulty` around the environments of the tasks."""
    from opdlight.config import compose

    found = []
    for name, task in compose("train", None, ["task=agent_math"]).task.tasks.items():
        at = f"task.tasks.{name}"
        found += [f"+{at}.env.inner={task.env.id}", f"{at}.env.id='tools.soak:Faulty-v0'", f"+{at}.env_seconds=10"]
    return found


def start(folder: Path, updates: int, extra: list[str]) -> psutil.Popen:
    """Start the run, or resume it."""
    begun = (folder / "overrides.json").exists()
    engine = [] if any(o.startswith("engine=") for o in extra) else POOL
    new = [*RUN, *engine, f"trainer.max_steps={updates}", *faulty_tasks(), *extra, f"hydra.run.dir={folder}"]
    command = [sys.executable, "-m", "opdlight.train", *([f"resume={folder}"] if begun else new)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    with Path(f"{folder}.log").open("a") as log:
        return psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)


def rows(folder: Path) -> list[dict[str, str]]:
    """The steps in metrics.csv."""
    if not (folder / "metrics.csv").exists():
        return []
    with (folder / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row.get("rollout/loss_tokens")]


def measure(process: psutil.Popen) -> dict[str, float]:
    """Resident memory of the trainer and of its children in MB, open files and threads of the trainer."""
    children = 0.0
    for child in process.children(recursive=True):
        try:
            children += child.memory_info().rss / 2**20
        except psutil.NoSuchProcess:
            continue
    own = process.memory_info().rss / 2**20
    return {"trainer": own, "children": children, "files": process.num_fds(), "threads": process.num_threads()}


def break_something(kind: str, process: psutil.Popen, draw: random.Random) -> bool:
    """Cause one fault of this kind; False if there is no process to kill."""
    if kind == "SIGTERM":
        process.terminate()
    elif kind == "kill":
        process.kill()
    else:
        actors = [c for c in process.children(recursive=True) if "EngineActor" in " ".join(c.cmdline())]
        if not actors:
            return False
        draw.choice(actors).send_signal(signal.SIGKILL)
    return True


def slope(samples: list[dict[str, float]], key: str) -> float | None:
    """Growth a minute of one segment: least squares through the lowest value of each half minute; None if too short.

    The lowest, because within a step the memory goes up and down by half of it.
    """
    begin = samples[0]["seconds"] + WARM_UP
    lowest: dict[int, float] = {}
    for sample in samples:
        if sample["seconds"] > begin:
            window = int((sample["seconds"] - begin) // 30)
            lowest[window] = min(sample[key], lowest.get(window, sample[key]))
    if len(lowest) < 5:
        return None
    return 2 * statistics.linear_regression(list(lowest), list(lowest.values())).slope


def main() -> int:
    parser = argument_parser(__doc__)
    parser.epilog = "Everything else goes to opdlight.train: python tools/soak.py engine=vllm"
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="minutes until the faults end and the run is stopped"
    )
    parser.add_argument("--updates", type=int, default=500, help="trainer.max_steps")
    parser.add_argument("--between", type=float, default=150.0, help="mean seconds between two faults")
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/soak"), help="run folder; <folder>.log, .csv and .json lie beside it"
    )
    arguments, extra = parser.parse_known_args()
    if not (arguments.minutes > 0 and arguments.updates > 0 and arguments.between > 0):
        parser.error("expected --minutes, --updates and --between to be above 0")
    folder = arguments.folder.absolute()
    if folder.exists():
        parser.error(f"--folder {folder} is there already: choose another one, or delete it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draw, console, begin = random.Random(arguments.seed), Console(), time.monotonic()
    faults, samples, exits = dict.fromkeys(FAULTS, 0), list[dict[str, float]](), list[int]()
    segment, family, unexpected = 0, set[int](), 0
    process = start(folder, arguments.updates, extra)
    due = begin + 20 * arguments.minutes  # the first third is without faults, to measure growth
    expected: int | None = None
    while True:
        time.sleep(2.0)
        over = time.monotonic() - begin > 60 * arguments.minutes
        if process.poll() is not None:
            exits.append(process.returncode)
            unexpected += process.returncode != (0 if expected is None else expected)
            if (folder / "summary.json").exists() or over or unexpected > 3:
                break
            segment, expected = segment + 1, None
            process = start(folder, arguments.updates, extra)
            due = max(due, time.monotonic() + draw.expovariate(1 / arguments.between))
            continue
        try:
            family |= {c.pid for c in process.children(recursive=True)}
            samples.append(
                {
                    "seconds": time.monotonic() - begin,
                    "segment": segment,
                    "steps": len(rows(folder)),
                    **measure(process),
                }
            )
        except psutil.NoSuchProcess:
            continue
        if expected is None and (over or time.monotonic() > due) and (folder / "metrics.csv").exists():
            kind = "SIGTERM" if over else draw.choice(FAULTS)
            if break_something(kind, process, draw):
                faults[kind] += 1
                expected = {"kill": -signal.SIGKILL, "SIGTERM": 0}.get(kind)
                console.print(f"{samples[-1]['seconds']:6.0f} s  step {len(rows(folder))}  {kind}")
            due = time.monotonic() + draw.expovariate(1 / arguments.between)
    if not samples:
        console.print(f"The run did not start; see {folder}.log")
        return 1
    return report(folder, faults, samples, exits, unexpected, still_alive(family))


def still_alive(family: set[int], seconds: float = 10.0) -> list[int]:
    """The processes of `family` that are still running after `seconds`."""
    begin = time.monotonic()
    while True:
        left = [p for p in family if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]
        if not left or time.monotonic() - begin > seconds:
            return left
        time.sleep(0.2)


def report(
    folder: Path,
    faults: dict[str, int],
    samples: list[dict[str, float]],
    exits: list[int],
    unexpected: int,
    left: list[int],
) -> int:
    """Write the samples and the figures, print them; 1 if something was lost, done twice, left over, or grew."""
    with Path(f"{folder}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, samples[0])
        writer.writeheader()
        writer.writerows(samples)
    done = rows(folder)
    steps = [int(row["step"]) for row in done]
    segments = [[s for s in samples if s["segment"] == n] for n in sorted({s["segment"] for s in samples})]
    growth = {
        key: [round(value, 3) for part in segments if (value := slope(part, key)) is not None]
        for key in ("trainer", "children", "files", "threads")
    }
    errors = sum(GROUPS * float(row["rollout/env_error"]) for row in done)
    figures: dict[str, Any] = {
        "minutes": round(samples[-1]["seconds"] / 60, 1),
        "faults": faults,
        "starts": len(exits),
        "exit codes": exits,
        "ended otherwise than expected": unexpected,
        "steps": len(steps),
        "steps lost or done twice": len(set(range(len(steps))) ^ set(steps)) + len(steps) - len(set(steps)),
        "trajectories ended by an environment": round(errors),
        "checkpoints that failed": sum(float(row["checkpoint/failed"]) for row in done),
        "processes left": left,
        "growth a minute (MB, MB, files, threads), by segment": growth,
        "most memory (MB)": round(max(s["trainer"] + s["children"] for s in samples)),
        "open files": [min(s["files"] for s in samples), max(s["files"] for s in samples)],
    }
    Path(f"{folder}.json").write_text(json.dumps(figures, indent=2))
    table = Table("figure", "value")
    for key, value in figures.items():
        table.add_row(key, str(value))
    Console(width=None if Console().is_terminal else 140).print(table)
    grew = any(statistics.mean(v) > limit for key, limit in (("trainer", 5.0), ("files", 0.5)) if (v := growth[key]))
    return int(bool(unexpected or figures["steps lost or done twice"] or left or grew))


if __name__ == "__main__":
    sys.exit(main())
