"""What `staleness=1` gains: `python tools/bench_overlap.py [Hydra overrides]`, the same run with 0 and with 1 in turn.

Seconds of a step are those of training, without the evaluations before and after. The ratio is of two runs one after
the other, so that other work on the machine slows both.

Example: python tools/bench_overlap.py --pairs 3 task=sums engine=ray
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from opdlight.system.arguments import argument_parser


def seconds_a_step(staleness: int, steps: int, overrides: list[str]) -> tuple[float, float, float]:
    """Wall seconds of a step, of its rollout stage, and of the other stages, of one run."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        fixed = ["+trainer.limit_val_batches=0", "evaluate_teachers=false", f"trainer.max_steps={steps}"]
        command = [sys.executable, "-m", "opdlight.train", *fixed, f"staleness={staleness}", *overrides]
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        done = subprocess.run(
            [*command, f"hydra.run.dir={run}"], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(done.stdout[-1000:] + done.stderr[-3000:])
        seconds = json.loads((run / "summary.json").read_text())["seconds"]
    rollout = seconds["train: rollout"] / steps
    others = sum(value for name, value in seconds.items() if name.startswith("train: ")) / steps - rollout
    return seconds["train"] / steps, rollout, others


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="runs of each kind")
    parser.add_argument("--steps", type=int, default=20, help="updates of a run")
    parser.epilog = "Everything else goes to opdlight.train."
    arguments, overrides = parser.parse_known_args()
    if min(arguments.pairs, arguments.steps) < 1:
        parser.error("expected --pairs and --steps of at least 1")
    pairs = [
        [seconds_a_step(staleness, arguments.steps, overrides) for staleness in (0, 1)] for _ in range(arguments.pairs)
    ]
    table = Table("staleness", "seconds a step", "in (or waiting for) the rollout", "in everything else")
    for staleness in (0, 1):
        table.add_row(str(staleness), *(f"{statistics.median(p[staleness][i] for p in pairs):.2f}" for i in range(3)))
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table)
    ratios = sorted(one[0] / ahead[0] for one, ahead in pairs)
    console.print(
        f"staleness 0 ÷ staleness 1: median {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}"
    )


if __name__ == "__main__":
    main()
