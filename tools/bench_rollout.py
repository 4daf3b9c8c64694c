"""Rollouts with continuous batching against plain vLLM and against turn-by-turn lock-step, side by side in one run.

Plain vLLM is its own loop without opdlight, given the prompts, limits, seeds and sampling of the rollout's requests all
at once. With one turn an episode that is what the collector costs; with several it is a bound that no rollout reaches,
as no turn waits for the one before it.
Lock-step waits at a barrier after each turn: the next turn begins when every live trajectory has been answered by its
environment, and environments act when every completion is finished.
All ways use the same engine, seeds and weights, so they generate the same tokens (on a CPU but for roundings that
depend on the batch); the prefix cache is emptied before each run, and the order alternates.

    python tools/bench_rollout.py --env opdlight/ALFWorld-v0 --episodes 64
    python tools/bench_rollout.py --env opdlight/ReasoningGym-v0 --env-args dataset=chain_sum --episodes 256
"""

from opdlight.system.beginning import begin_script

if __name__ == "__main__":
    begin_script()

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from opdlight.data.tasks import Task
from opdlight.errors import OpdError
from opdlight.models.loading import resolve_model
from opdlight.rollout import ChatRenderer, Collector, Completion, Engine, Limits, Request, Sampling, VLLMEngine
from opdlight.system.arguments import argument_parser
from opdlight.types import RolloutRequest


@dataclass(frozen=True, slots=True)
class Run:
    """What one run took and gave."""

    seconds: float
    tokens: int
    turns: int

    @property
    def speed(self) -> float:
        """Generated tokens per second."""
        return self.tokens / self.seconds


class RecordingEngine(VLLMEngine):
    """Remembers its requests and can send them to vLLM once more, without opdlight."""

    def __init__(self, model: str, **arguments: Any) -> None:
        super().__init__(model, **arguments)
        self.requests: list[Request] = []

    def add_request(self, request: Request) -> None:
        """Remember the request and queue it."""
        self.requests.append(request)
        super().add_request(request)

    def plain(self) -> Run:
        """Generate the remembered requests in vLLM's own loop."""
        final = self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY
        work = [
            (
                request.request_id,
                {"prompt_token_ids": request.prompt_ids},
                self._vllm.SamplingParams(
                    temperature=request.sampling.temperature,
                    top_p=request.sampling.top_p,
                    max_tokens=request.max_tokens,
                    seed=request.seed,
                    stop_token_ids=request.sampling.stop_ids(self._stop_ids),
                    logprobs=0,
                    detokenize=False,
                    output_kind=final,
                ),
            )
            for request in self.requests
        ]
        vllm, tokens = self._engine, 0
        with self._engine_state():
            start = time.perf_counter()
            for name, prompt, parameters in work:
                vllm.add_request(name, prompt, parameters)
            while vllm.has_unfinished_requests():
                tokens += sum(len(output.outputs[0].token_ids) for output in vllm.step() if output.finished)
            return Run(time.perf_counter() - start, tokens, len(work))


class LockStep:
    """An engine with a barrier: all live trajectories send a request, then all completions return together."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.max_model_len, self.policy_version = engine, engine.max_model_len, engine.policy_version
        self.shares_cores = engine.shares_cores
        self.live = 0  # trajectories that have not ended
        self._waiting: list[Request] = []
        self._finished: list[Completion] = []

    def add_request(self, request: Request) -> None:
        """Keep the request until every live trajectory has sent one."""
        self._waiting.append(request)

    def has_unfinished(self) -> bool:
        """True while a turn is decoded, or all requests of the next turn are there."""
        return self.engine.has_unfinished() or 0 < len(self._waiting) == self.live

    def step(self) -> list[Completion]:
        """One decoding step; no completion is returned before all are finished."""
        if not self.engine.has_unfinished():
            for request in self._waiting:
                self.engine.add_request(request)
            self._waiting.clear()
        self._finished += self.engine.step()
        if self.engine.has_unfinished():
            return []
        finished, self._finished = self._finished, []
        return finished

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Update the wrapped engine."""
        self.engine.update_weights(weights, policy_version)
        self.policy_version = policy_version

    def sleep(self) -> None:
        """Let the wrapped engine sleep."""
        self.engine.sleep()

    def wake(self) -> None:
        """Wake the wrapped engine."""
        self.engine.wake()
        self.policy_version = self.engine.policy_version

    def stats(self) -> dict[str, float]:
        """Figures of the wrapped engine."""
        return self.engine.stats()

    def close(self) -> None:
        """Does nothing: the caller closes the wrapped engine."""


def arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--model", default="lab/student", help="Hugging Face folder, or a bundled model")
    parser.add_argument("--env", default="opdlight/ALFWorld-v0", help="Gymnasium id of a text environment")
    parser.add_argument(
        "--env-args", nargs="+", default=[], metavar="KEY=VALUE", help="the environment's arguments, as max_turns=15"
    )
    parser.add_argument("--episodes", type=int, default=64, help="episodes of one run")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way")
    parser.add_argument("--top-p", type=float, default=1.0, help="share of the probability that is sampled from")
    parser.add_argument("--turn-tokens", type=int, default=64, help="longest completion")
    parser.add_argument("--trajectory-tokens", type=int, default=2048, help="longest context")
    parser.add_argument("--max-num-seqs", type=int, default=64, help="sequences decoded at the same time")
    parser.add_argument("--env-threads", type=int, default=4, help="environments that step at the same time")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="dtype of the engine")
    parser.add_argument("--threads", type=int, help="CPU threads of the engine")
    args = parser.parse_args()
    try:
        args.model = resolve_model(args.model)
    except OpdError as error:
        parser.error(f"--model: {error}")
    if not Path(args.model, "config.json").is_file():
        parser.error(f"expected --model to be a bundled model or a folder, but {args.model!r} has no config.json")
    counts = ("episodes", "repeats", "turn_tokens", "trajectory_tokens", "max_num_seqs", "env_threads", "threads")
    for count in counts:
        if (value := getattr(args, count)) is not None and value < 1:
            parser.error(f"expected --{count.replace('_', '-')} of at least 1, but got {value}")
    if not 0 < args.top_p <= 1:
        parser.error(f"expected --top-p above 0 and at most 1, but got {args.top_p}")
    try:
        make_task(args).make_env().close()
    except (gymnasium.error.Error, TypeError, OpdError) as error:
        parser.error(f"cannot make --env {args.env} {' '.join(args.env_args)}: {error}")
    return args


def make_task(args: argparse.Namespace) -> Task:
    env: Any = OmegaConf.to_container(OmegaConf.from_dotlist(args.env_args))
    return Task(env={"id": args.env, **env}, teacher="")


def main() -> None:
    args = arguments()
    console = Console()
    task = make_task(args)
    weights = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype).state_dict()
    renderer = ChatRenderer(AutoTokenizer.from_pretrained(args.model))
    limits = {"bench": Limits(turn_tokens=args.turn_tokens, trajectory_tokens=args.trajectory_tokens)}
    requests = [RolloutRequest(task="bench", seed=seed, group=seed) for seed in range(args.episodes)]
    with console.status("starting vLLM"):
        engine = RecordingEngine(
            args.model,
            dtype=args.dtype,
            max_model_len=args.trajectory_tokens,
            max_num_seqs=args.max_num_seqs,
            threads=args.threads,
        )
    lock_step = LockStep(engine)
    make_env = lambda name: task.make_env()  # noqa: E731
    engines: dict[str, Engine] = {"continuous": engine, "lock-step": lock_step}
    collectors = {
        name: Collector(e, renderer, make_env, limits, args.env_threads, max_active=args.episodes)
        for name, e in engines.items()
    }

    def roll_out(name: str, progress: Callable[[int, int], None]) -> Run:
        engine.requests.clear()
        collectors[name].collect(requests, Sampling(top_p=args.top_p), progress=progress)
        stats = collectors[name].last
        assert stats is not None
        return Run(stats.seconds, stats.generated_tokens, stats.turns)

    ways = {
        "continuous": lambda progress: roll_out("continuous", progress),
        "plain vLLM": lambda progress: engine.plain(),
        "lock-step": lambda progress: roll_out("lock-step", progress),
    }
    found: dict[str, list[Run]] = {name: [] for name in ways}
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    try:
        with Progress(*columns, console=console) as bar:
            for repeat in range(-1, args.repeats):  # the first round warms up: games are built, code is loaded
                for name in list(ways)[:: 1 if repeat % 2 else -1]:
                    title = f"warm-up, {name}" if repeat < 0 else f"run {repeat + 1} of {args.repeats}, {name}"
                    line = bar.add_task(title, total=args.episodes)

                    def progress(finished: int, total: int, line: Any = line) -> None:
                        lock_step.live = total - finished
                        bar.update(line, completed=finished)

                    engine.update_weights(weights.items(), repeat + 1)  # the same ones: this empties the prefix cache
                    run = ways[name](progress)
                    bar.update(line, completed=args.episodes)
                    if repeat >= 0:
                        found[name].append(run)
    finally:
        for collector in collectors.values():
            collector.close()
        engine.close()

    table = Table("", "tokens/s", "seconds", "generated tokens", "turns", title=f"{args.env}, {args.episodes} episodes")
    for name, runs in found.items():
        speeds = [run.speed for run in runs]
        table.add_row(
            name,
            f"{statistics.median(speeds):.0f} ({min(speeds):.0f}–{max(speeds):.0f})",
            f"{statistics.median(run.seconds for run in runs):.2f}",
            f"{statistics.median(run.tokens for run in runs):.0f}",
            f"{statistics.median(run.turns for run in runs):.0f}",
        )
    console.print(table)
    for other in ("plain vLLM", "lock-step"):
        ratios = [a.speed / b.speed for a, b in zip(found["continuous"], found[other], strict=True)]
        console.print(
            f"continuous / {other}, tokens per second: median {statistics.median(ratios):.2f}, "
            f"from {min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} pairs"
        )


if __name__ == "__main__":
    main()
