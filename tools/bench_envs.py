"""Environments in threads of the engine's process against worker processes, on the same episodes, side by side.

Both ways use the same engine, seeds and weights, so they generate the same tokens; the order alternates. With
`--scripted` an engine answers at once with the same few tokens: what is left is the speed of the environments.

    python tools/bench_envs.py --episodes 128 --workers 2
    python tools/bench_envs.py --scripted --episodes 128 --workers 2 --env-args max_turns=30
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from opdlight.data.tasks import Task, make_task_env
from opdlight.rollout import ChatRenderer, Collector, Engine, Limits, Sampling, ScriptedEngine, VLLMEngine
from opdlight.rollout.collector import RolloutStats
from opdlight.rollout.env_processes import ProcessPool
from opdlight.system.arguments import argument_parser
from opdlight.types import RolloutRequest


def arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--model", default="opdlight/assets/lab/student", help="Hugging Face folder")
    parser.add_argument("--env", default="opdlight/ALFWorld-v0", help="Gymnasium id of a text environment")
    parser.add_argument("--env-args", nargs="+", default=[], metavar="KEY=VALUE", help="the environment's arguments")
    parser.add_argument("--episodes", type=int, default=128, help="episodes of one run")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way")
    parser.add_argument("--threads", type=int, default=16, help="environments that step at once in threads")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument("--turn-tokens", type=int, default=64, help="longest completion")
    parser.add_argument("--trajectory-tokens", type=int, default=2048, help="longest context")
    parser.add_argument("--scripted", action="store_true", help="answer every prompt at once with a few tokens")
    args = parser.parse_args()
    if min(args.episodes, args.repeats, args.workers) < 1:
        parser.error("expected --episodes, --repeats and --workers of at least 1")
    return args


def resident_mib(collector: Collector) -> list[float]:
    """The memory of each worker process now (Linux)."""
    pool = collector._envs
    assert isinstance(pool, ProcessPool)
    pages = [Path(f"/proc/{w._process.pid}/statm").read_text().split()[1] for w in pool._workers if w._process]
    return [int(n) * 4096 / 2**20 for n in pages]


def make_engine(args: argparse.Namespace, tokenizer: Any) -> Engine:
    if not args.scripted:
        return VLLMEngine(args.model, dtype="float32", max_model_len=args.trajectory_tokens)
    answer = [*tokenizer("go to cabinet 1", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return ScriptedEngine(lambda prompt: answer, max_model_len=args.trajectory_tokens)


def main() -> None:
    args = arguments()
    console = Console()
    env: Any = OmegaConf.to_container(OmegaConf.from_dotlist(args.env_args))
    make_env = partial(make_task_env, {"bench": Task(env={"id": args.env, **env})})
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    weights = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32").state_dict()
    limits = {"bench": Limits(turn_tokens=args.turn_tokens, trajectory_tokens=args.trajectory_tokens)}
    requests = [RolloutRequest(task="bench", seed=seed // 8, group=seed // 8) for seed in range(args.episodes)]
    engine = make_engine(args, tokenizer)
    collectors = {
        f"{n} {what}": Collector(engine, ChatRenderer(tokenizer), make_env, limits, args.threads, workers)
        for n, what, workers in ((args.threads, "threads", 0), (args.workers, "processes", args.workers))
    }
    found: dict[str, list[RolloutStats]] = {name: [] for name in collectors}
    memory: list[float] = []
    try:
        for repeat in range(-1, args.repeats):  # the first pair warms up: games are built, code is loaded
            for name in list(collectors)[:: 1 if repeat % 2 else -1]:
                with console.status(f"{name}, run {repeat + 1} of {args.repeats}"):
                    engine.update_weights(weights.items(), repeat + 1)  # the same ones: this empties the prefix cache
                    collectors[name].collect(requests, Sampling())
                stats = collectors[name].last
                assert stats is not None
                if repeat >= 0:
                    found[name].append(stats)
        memory = resident_mib(list(collectors.values())[1])
    finally:
        start = time.perf_counter()
        for collector in collectors.values():
            collector.close()
        engine.close()
        closing = time.perf_counter() - start

    table = Table(
        "", "tokens/s", "environment steps/s", "seconds", "turns", title=f"{args.env}, {args.episodes} episodes"
    )
    for name, runs in found.items():
        steps = [s.turns / s.seconds for s in runs]
        table.add_row(
            name,
            f"{statistics.median(s.tokens_per_second for s in runs):.0f}",
            f"{statistics.median(steps):.0f} ({min(steps):.0f}–{max(steps):.0f})",
            f"{statistics.median(s.seconds for s in runs):.2f}",
            f"{statistics.median(s.turns for s in runs):.0f}",
        )
    console.print(table)
    threads, processes = found.values()
    ratios = [a.seconds / b.seconds for a, b in zip(threads, processes, strict=True)]
    console.print(
        f"processes / threads, steps per second: median {statistics.median(ratios):.2f}, "
        f"from {min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} pairs"
    )
    console.print(f"a process takes {max(memory, default=0):.0f} MiB; closing took {closing:.1f} s")


if __name__ == "__main__":
    main()
