"""How OpenMP's threads should wait: `python tools/bench_threads.py [Hydra overrides]`, the same run with each setting.

The settings take turns, so that other work on the machine slows all of them. Seconds of a step are the median over the
updates of a run without its first two; the ratio is to the setting that opdlight chooses, within the same turn.
Example: python tools/bench_threads.py --turns 3 task=sums
"""

import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from opdlight.system.arguments import argument_parser

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
SETTINGS = {
    "as opdlight chooses": {},
    "spin, as OpenMP does": {"GOMP_SPINCOUNT": "300000"},
    "sleep at once": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def seconds_a_step(setting: dict[str, str], steps: int, overrides: list[str]) -> float:
    """Median wall seconds of a step of one run: rollout, scoring, backward pass, publication."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        fixed = ["+trainer.limit_val_batches=0", "evaluate_teachers=false", f"trainer.max_steps={steps}"]
        command = [sys.executable, "-m", "opdlight.train", *fixed, f"run_dir={run}", *overrides]
        environment = {n: v for n, v in os.environ.items() if n not in VARIABLES} | {"PYTHONPATH": os.getcwd()}
        done = subprocess.run(command, env=environment | setting, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stdout[-1000:] + done.stderr[-3000:])
        with (run / "metrics.csv").open() as file:
            rows = [[float(v) for k, v in row.items() if k.startswith("time/") and v] for row in csv.DictReader(file)]
    seconds = [sum(row) for row in rows if row]
    return statistics.median(seconds[2:] or seconds)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--turns", type=int, default=3, help="runs of each setting")
    parser.add_argument("--steps", type=int, default=10, help="updates of a run")
    known = ", ".join(repr(name) for name in SETTINGS)
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="NAME", help=f"of {known}"
    )
    parser.epilog = "Everything else goes to opdlight.train."
    arguments, overrides = parser.parse_known_args()
    if min(arguments.turns, arguments.steps) < 1:
        parser.error("expected --turns and --steps of at least 1")
    found: dict[str, list[float]] = {name: [] for name in arguments.settings}
    for _ in range(arguments.turns):
        for name, seconds in found.items():
            seconds.append(seconds_a_step(SETTINGS[name], arguments.steps, overrides))
            print(f"{name}: {seconds[-1]:.3f} s a step", flush=True)
    first = next(iter(found.values()))
    table = Table("setting", "seconds a step", "times the first")
    for name, seconds in found.items():
        ratios = sorted(s / f for s, f in zip(seconds, first, strict=True))
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        table.add_row(name, f"{statistics.median(seconds):.3f}", spread)
    Console(width=None if Console().is_terminal else 100).print(table)


if __name__ == "__main__":
    main()
