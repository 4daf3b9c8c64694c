"""Does a step grow faster than its work? Seconds a step against tokens, length, K, V, turns, group size and tasks.

Each series changes one size and fixes the others, on small models of random weights and, but for the turns, with
answers drawn at random, so that no engine is needed. Every size is run twice, upwards and downwards; the first step of
a run warms up and is left out. An exponent is that of seconds against work, from one size to the next: 1 says that
both grow alike.

    python tools/bench_growth.py --series tokens K
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from opdlight.system.beginning import begin_script

if __name__ == "__main__":
    begin_script()

import functools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from transformers import AutoConfig, AutoModelForCausalLM

from opdlight.config import TrainConfig, compose, instantiate, make_trainer
from opdlight.data.requests import OnPolicyData
from opdlight.errors import OpdError
from opdlight.models.flops import training_flops
from opdlight.models.loading import load_tokenizer, resolve_model
from opdlight.rollout import ScriptedEngine, VLLMEngine
from opdlight.system.arguments import argument_parser
from opdlight.system.quiet import quiet_libraries
from opdlight.train.build import build

STAGES = ("rollout", "score", "compare", "backward", "watch")


@dataclass(frozen=True)
class Size:
    """What a step consists of."""

    groups: int = 32
    group_size: int = 1
    length: int = 64  # of each answer, in tokens
    k: int = 32
    vocabulary: int = 4096
    turns: int = 1
    tasks: int = 1  # each with a teacher of its own; they share the groups


@dataclass(frozen=True)
class Step:
    """What a step took and worked on."""

    seconds: float
    stages: dict[str, float]
    lengths: list[int]  # of its rows, in tokens
    trained: int  # tokens with a loss
    flops: float  # of training the layers and the head on these rows, forward and backward

    @property
    def tokens(self) -> int:
        """That the models run."""
        return sum(self.lengths)


@dataclass(frozen=True)
class Series:
    """One size that changes."""

    sizes: tuple[int, ...]
    made: Callable[[int], Size]
    work: Callable[[Size, Step], float]
    unit: str  # of the work


SERIES = {
    "tokens": Series((32, 64, 128), lambda n: Size(groups=n), lambda size, step: step.tokens, "tokens"),
    "length": Series((64, 128, 256), lambda n: Size(groups=16, length=n), lambda size, step: step.flops, "FLOP"),
    "K": Series((32, 128, 512), lambda n: Size(k=n), lambda size, step: step.trained * size.k, "K · tokens"),
    "V": Series(
        (4096, 16384, 65536),
        lambda n: Size(groups=16, vocabulary=n),
        lambda size, step: step.trained * size.vocabulary,
        "V · tokens",
    ),
    "turns": Series((2, 4, 8), lambda n: Size(groups=8, turns=n, length=16), lambda size, step: step.flops, "FLOP"),
    "group size": Series((1, 4, 16), lambda n: Size(groups=8, group_size=n), lambda size, step: step.tokens, "tokens"),
    "tasks": Series((1, 2, 4), lambda n: Size(groups=64, tasks=n), lambda size, step: step.tokens, "tokens"),
}


class RandomAnswers(ScriptedEngine):
    """Answers with `length` random tokens, none of which ends; takes the arguments of an engine of a config."""

    def __init__(self, model: str, max_model_len: int, length: int, **ignored: Any) -> None:
        tokenizer = load_tokenizer(resolve_model(model))
        width, draw = len(tokenizer), torch.Generator().manual_seed(0)
        first = max(tokenizer.all_special_ids) + 1
        super().__init__(
            lambda prompt: torch.randint(first, width, (length,), generator=draw).tolist(), max_model_len=max_model_len
        )


class KeptEngine(VLLMEngine):
    """Serves one run after another: it starts once."""

    def close(self) -> None:
        """Nothing: the process ends soon."""


@functools.cache
def kept_engine(**arguments: Any) -> KeptEngine:
    """The engine with these arguments."""
    return KeptEngine(**arguments)


class Keep(L.Callback):
    """Keeps the steps after the first."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._began = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After the other callbacks, so that what they do is in."""
        now = time.perf_counter()
        if batch_idx:
            step, student = outputs["step"], pl_module.student.model
            lengths = [len(t.turns[-1].prompt_ids) + len(t.turns[-1].completion_ids) for t in step.trajectories]
            layers = training_flops(student)
            assert layers is not None
            head = 6.0 * student.get_output_embeddings().weight.numel() * step.loss_tokens
            stages = {name: pl_module.timer.seconds.get(name, 0.0) for name in STAGES}
            kept = Step(now - self._began, stages, lengths, step.loss_tokens, layers.of(lengths) + head)
            self.steps.append(kept)
        self._began = time.perf_counter()


def write_model(folder: Path, vocabulary: int, seed: int) -> str:
    """The lab student's shape and tokenizer with random weights; tokens that no text has make the vocabulary larger."""
    target = folder / f"{vocabulary}-{seed}"
    if not target.exists():
        source = Path(resolve_model("lab/student"))
        torch.manual_seed(seed)
        config = AutoConfig.from_pretrained(source)
        config.vocab_size = vocabulary
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(target)
        load_tokenizer(str(source)).save_pretrained(target)
        file = target / "tokenizer.json"
        content = json.loads(file.read_text())
        words = content["model"]["vocab"]
        last = [token for token in content["added_tokens"] if token["id"] >= len(words)]
        words |= {f"token{n}": n for n in range(len(words), vocabulary - len(last))}
        for n, token in enumerate(last, vocabulary - len(last)):
            token["id"] = n
        file.write_text(json.dumps(content))
    return str(target)


def overrides(size: Size, folder: Path) -> list[str]:
    """The config of a step of this size."""
    student, *teachers = (write_model(folder, size.vocabulary, seed) for seed in range(1 + size.tasks))
    context = 512 + size.length * size.turns * 4
    env = "{id:opdlight/ReasoningGym-v0,dataset:chain_sum}"
    if size.turns > 1:  # the answers are no moves of the game, so every episode has all its turns
        student, env = "lab/student", f"{{id:opdlight/ToyText-v0,game:Taxi-v4,max_turns:{size.turns}}}"
        teachers, context = ["lab/teacher-alfworld"], 2048
        engine = ["engine._target_=tools.bench_growth.kept_engine"]
    else:
        engine = ["engine._target_=tools.bench_growth.RandomAnswers", f"+engine.length={size.length}"]
    tasks = [
        f"+task.tasks.task{n}={{_target_:opdlight.data.Task,env:{env},teacher:{teacher},weight:1,"
        f"turn_tokens:{size.length},trajectory_tokens:{context},episodes:2}}"
        for n, teacher in enumerate(teachers)
    ]
    return [
        *engine, "task=sums", "task.schedule=mixed", "~task.tasks.sums", *tasks,
        f"model.student.model={student}", f"model.max_model_len={context}", f"loss.k={size.k}",
        f"rollout.groups={size.groups}", f"rollout.group_size={size.group_size}",
        "~callbacks.checkpoints", "~callbacks.progress", "~callbacks.alarms", "+trainer.limit_val_batches=0",
    ]  # fmt: skip


def run(size: Size, steps: int, folder: Path) -> list[Step]:
    """Train with the callbacks of the config, without evaluations."""
    with tempfile.TemporaryDirectory(dir=folder) as run_dir:
        more = [f"trainer.max_steps={steps + 1}", f"run_dir={run_dir}"]
        cfg = compose("train", TrainConfig, [*overrides(size, folder), *more])
        mixture = instantiate(cfg.task)
        module = build(cfg, mixture)
        keep = Keep()
        callbacks = [*instantiate(cfg.callbacks).values(), keep]
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = make_trainer(cfg.trainer, callbacks=callbacks, default_root_dir=run_dir, **quiet)
        sizes = {"groups": size.groups, "group_size": size.group_size}
        trainer.fit(module, datamodule=OnPolicyData(mixture, updates=steps + 1, seed=cfg.seed, **sizes))
        module.source.close()
    return keep.steps


def judge(before: list[float], after: list[float], work: float) -> tuple[str, str]:
    """Exponent and verdict of the growth of seconds from `before` to `after` while the work grew `work` times."""
    ratio = statistics.median(after) / statistics.median(before)
    exponent = f"{math.log(ratio) / math.log(work):.2f}" if work > 1.2 else f"× {ratio:.2f}, the same work"
    if ratio <= max(work, 1.0):
        return exponent, "no faster"
    return exponent, "no faster, within the spread" if min(after) / max(before) <= work else "FASTER"


def measure(name: str, series: Series, steps: int, folder: Path) -> None:
    """Run a series and print its table."""
    found: dict[int, list[Step]] = {n: [] for n in series.sizes}
    for n in [*series.sizes, *reversed(series.sizes)]:
        found[n] += run(series.made(n), steps, folder)
        print(f"{name} {n:,}: {found[n][-1].seconds:.2f} s a step", file=sys.stderr, flush=True)
    print(f"| {name} | {series.unit} | s a step | {' | '.join(STAGES)} | exponent | grows |")
    print("|---" * (5 + len(STAGES)) + "|")
    work = {n: statistics.mean(series.work(series.made(n), step) for step in steps) for n, steps in found.items()}
    before: int | None = None
    for n, kept in found.items():
        seconds = [step.seconds for step in kept]
        stages = [f"{statistics.median(step.stages[stage] for step in kept):.3f}" for stage in STAGES]
        last = ("", "")
        if before is not None:
            last = judge([step.seconds for step in found[before]], seconds, work[n] / work[before])
        spread = f"{statistics.median(seconds):.3f} ({min(seconds):.3f}–{max(seconds):.3f})"
        print(f"| {' | '.join([f'{n:,}', f'{work[n]:,.3g}', spread, *stages, *last])} |")
        before = n
    first, other = (vars(series.made(n)) for n in (1, 2))
    fixed = ", ".join(f"{k.replace('_', ' ')} {v:,}" for k, v in first.items() if v == other[k])
    print(f"\nThe others: {fixed}\n", flush=True)


def main() -> None:
    parser = argument_parser(__doc__)
    known = ", ".join(repr(name) for name in SERIES)
    parser.add_argument("--series", nargs="+", choices=SERIES, metavar="NAME", default=list(SERIES), help=f"of {known}")
    parser.add_argument("--steps", type=int, default=2, help="steps of each size that count, upwards and downwards")
    parser.add_argument("--sizes", nargs=3, type=int, metavar="N", help="three sizes instead of those of the series")
    args = parser.parse_args()
    if min(args.steps, *(args.sizes or [1])) < 1:
        parser.error("expected --steps and --sizes of at least 1")
    quiet_libraries()
    print(f"The CPU with {torch.get_num_threads()} threads, float32, torch {torch.__version__}\n")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.series:
            began = time.perf_counter()
            series = SERIES[name]
            sizes = tuple(sorted(args.sizes or series.sizes))
            try:
                measure(name, replace(series, sizes=sizes), args.steps, Path(folder))
            except (OpdError, InstantiationException) as error:
                said = error.__cause__ if isinstance(error, InstantiationException) else error
                raise SystemExit(f"error: {name}: {said}") from error
            print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
