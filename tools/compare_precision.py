"""Training in float32, with bfloat16 forward passes, and with bfloat16 weights, side by side.

`python tools/compare_precision.py` trains the lab student on sums three times (FSDP2, two processes on the CPU, the
real engine in the compute dtype) and prints a Markdown table: the share of weights that have changed, the loss, the
engine's mismatch and the success on held-out episodes. A run folder that is complete is not trained again.
"""

import argparse
import csv
import os
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from safetensors.torch import load_file

from opdlight.models.loading import resolve_model
from opdlight.system.arguments import argument_parser

TITLES = {"float32": "float32", "mixed": "bfloat16 forward, float32 weights", "bfloat16": "bfloat16 weights"}
RUNS = {
    "float32": ["model.dtype=float32", "model.compute_dtype=float32"],
    "mixed": ["model.dtype=float32", "model.compute_dtype=bfloat16"],
    "bfloat16": ["model.dtype=bfloat16", "optimizer._target_=tools.compare_precision.Unchecked"],
}
ROOT = Path(__file__).resolve().parents[1]
PARTS = 5  # means over so many equal parts of the updates are shown of the loss


class Unchecked(torch.optim.AdamW):
    """AdamW of another name: `opdlight.train` refuses torch's own where it would move few of the weights."""


def moved(student: Path) -> float:
    """The share of the lab student's weights that are other numbers in the folder of a trained one."""
    before, after = (load_file(f / "model.safetensors") for f in (Path(resolve_model("lab/student")), student))
    changed = sum(int((after[name].float() != weight.float()).sum()) for name, weight in before.items())
    return changed / sum(weight.numel() for weight in before.values())


def column(rows: list[dict[str, str]], key: str) -> list[float]:
    """The values of a metric, in the steps that logged it."""
    return [float(row[key]) for row in rows if row.get(key)]


def row(folder: Path) -> list[str]:
    """The cells of a run: share moved, loss in parts, largest |k1|, mean share clipped, held-out success."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = column(rows, "loss/train")
    size = -(-len(losses) // PARTS)
    parts = [fmean(losses[i : i + size]) for i in range(0, len(losses), size)]
    k1, clipped = column(rows, "mismatch/k1/sums"), column(rows, "mismatch/clipped/sums")
    success = column(rows, "val/success/sums")
    return [
        f"{100 * moved(folder / 'student'):.1f} %",
        " ".join(f"{part:.4f}" for part in parts),
        f"{fmean(map(abs, k1)):.1e} ({max(map(abs, k1)):.1e})",
        f"{fmean(clipped):.1e}",
        f"{success[0]:.2f} → {success[-1]:.2f}",
    ]


def train(name: str, folder: Path, args: argparse.Namespace) -> None:
    """One run in processes of its own."""
    how = [f"trainer.devices={args.processes}", "trainer.accelerator=cpu", f"trainer.max_steps={args.updates}"]
    command = [sys.executable, "-m", "opdlight.train", "task=sums", "loss=topk_rkl", "trainer=fsdp", *how]
    command += [f"rollout.groups={args.groups}", f"optimizer.lr={args.learning_rate}", "evaluate_teachers=false"]
    command += [f"task.tasks.sums.episodes={args.episodes}", f"hydra.run.dir={folder}", *RUNS[name], *args.override]
    print(shlex.join(command[1:]), file=sys.stderr)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)


def main() -> None:
    """Train, then print."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--runs", nargs="+", choices=list(RUNS), default=list(RUNS), metavar="RUN", help=", ".join(RUNS)
    )
    parser.add_argument("--updates", type=int, default=50, help="of each run")
    parser.add_argument("--processes", type=int, default=2, help="that divide the student")
    parser.add_argument("--groups", type=int, default=48, help="trajectories of one update")
    parser.add_argument("--episodes", type=int, default=128, help="held-out, before and after")
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="its largest; constant in size for Adam")
    parser.add_argument("--folder", type=Path, default=Path("runs/precision"), help="of the run folders")
    parser.add_argument("override", nargs="*", help="further overrides of opdlight.train, such as seed=2")
    args = parser.parse_args()
    for name in ("updates", "processes", "groups", "episodes"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: expected at least 1, but got {getattr(args, name)}")
    columns = ["weights and forward", f"moved in {args.updates} updates", f"loss, means of {PARTS} parts"]
    columns += ["mismatch k1, mean (largest)", "clipped", "success"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name in args.runs:
        folder = args.folder / name
        if not (folder / "student").exists():
            train(name, folder, args)
        lines.append(f"| {' | '.join([TITLES[name], *row(folder)])} |")
    Console(width=400).print("\n".join(lines), markup=False, highlight=False)


if __name__ == "__main__":
    main()
