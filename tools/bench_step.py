"""Where the time of a training step goes: `python tools/bench_step.py [Hydra overrides]` prints one table a task.

With the callbacks of the config. By stage: the seconds of the first update and the mean of the later ones, the
floating-point operations, and what they are of the machine's own matrix product, which is measured in the same run.

- Layers are counted by `opdlight.models.flops` (PaLM, arXiv 2204.02311, appendix B), without padding and with what
  several rows begin with once, however it is computed; attention row by row. Heads are counted as 2 a number of each
  product: d·V a position where the whole vocabulary is looked at, d·K on a support; their backward
  pass is one product for the hidden states and one for the weight, if it is trained. `score` and `backward` are the
  heads, `watch` holds the student's pass over the vocabulary at the probed positions.
- The peak is the best of 10 products of two square matrices, before and after the updates, in the dtype of the
  student's forward pass; of 1,024 rows on a CPU, 8,192 on a GPU.
- `watching in all` is all that is done for callbacks (probing tokens in both models, what they do with it, what they
  write). It is part of the stages above it.

Example: python tools/bench_step.py --updates 10 task=sums loss=sampled_token
"""

from opdlight.system.beginning import begin_script

if __name__ == "__main__":
    begin_script()

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning as L
import torch
from hydra.errors import InstantiationException
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from rich.console import Console
from rich.table import Table
from torch import Tensor

from opdlight.config import TrainConfig, compose, instantiate, make_trainer
from opdlight.data.requests import OnPolicyData
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.errors import OpdError
from opdlight.models import Student, Teacher, one_pass
from opdlight.models.flops import LayerFlops, forward_flops, training_flops
from opdlight.models.lm_head import LMHead
from opdlight.models.support_product import SupportProduct
from opdlight.system.arguments import argument_parser
from opdlight.system.quiet import quiet_libraries
from opdlight.train.build import build
from opdlight.types import TokenBatch

WATCHING = "watching in all"
STUDENT, TEACHER, LAYERS = "student forward", "teacher forward", "backward of the layers"
COUNTING = "counting FLOPs"  # is not shown
HOOKS = ("on_train_batch_start", "on_before_backward", "on_after_backward", "on_train_batch_end")


class Record(L.Callback):
    """Keeps seconds and FLOPs of the stages of every update, by task."""

    def __init__(self, module: OnPolicyDistillation) -> None:
        self.module, self.timer = module, module.timer
        self.seconds: dict[str, list[dict[str, float]]] = defaultdict(list)
        self.flops: dict[str, list[dict[str, float]]] = defaultdict(list)
        self.counted: dict[str, float] = defaultdict(float)  # FLOPs of the current update by stage
        self.hidden = 0.0  # seconds of watching that the stage `watch` does not show
        self.heads = ExitStack()  # in a backward pass: the time before it reaches the layers

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After publication, so that its time is in."""
        tasks = " + ".join(dict.fromkeys(t.task for t in outputs["step"].trajectories))
        seconds = {name: spent for name, spent in self.timer.seconds.items() if name != COUNTING}
        print(f"update {batch_idx + 1}: {sum(seconds.values()):.2f} s", flush=True)
        seconds[WATCHING] = self.hidden + seconds.get("watch", 0.0)
        self.seconds[tasks].append(seconds)
        self.flops[tasks].append(dict(self.counted))
        self.hidden = 0.0
        self.counted.clear()

    def add(self, flops: float) -> None:
        """Count for the stage that runs now."""
        self.counted[self.timer.name] += flops

    def watched(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call what only callbacks want."""
        if self.timer.name == "watch":
            return function(*args, **kwargs)
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            self.hidden += time.perf_counter() - start

    def student(self, function: Any, student: Student, batch: TokenBatch) -> Tensor:
        """`Student.hidden` as a stage of its own; so is the backward pass from there on."""
        with self.timer(COUNTING):
            forward = needed(forward_flops(student.model), batch)
            backward = needed(training_flops(student.model), batch) - forward
        with self.timer(STUDENT):
            self.add(forward)
            hidden: Tensor = function(student, batch)

        def reached(_: Tensor) -> None:
            self.heads.close()
            self.counted[LAYERS] += backward

        if hidden.requires_grad:
            hidden.register_hook(reached)
        return hidden

    def teacher(self, function: Any, teacher: Teacher, batch: TokenBatch) -> Tensor:
        """`Teacher.forward` as a stage of its own."""
        with self.timer(COUNTING):
            forward = needed(forward_flops(teacher.model), batch)
        with self.timer(TEACHER):
            self.add(forward)
            hidden: Tensor = function(teacher, batch)
        return hidden

    def backward(self, function: Any, *args: Any, **kwargs: Any) -> None:
        """A backward pass: first the heads', then the layers'."""
        with self.timer(LAYERS), self.heads:
            self.heads.enter_context(self.timer("backward"))
            function(*args, **kwargs)

    def logits(self, function: Any, head: LMHead, hidden: Tensor) -> Tensor:
        """`LMHead.logits`: all ids."""
        product = 2.0 * len(hidden) * head.weight.numel()
        self.add(product)
        found: Tensor = function(head, hidden)
        if found.requires_grad:
            products = hidden.requires_grad + head.gradient_to.requires_grad
            found.register_hook(lambda _: self.add(products * product))
        return found

    def support(self, function: Any, ctx: Any, hidden: Tensor, weight: Tensor, stand_in: Tensor, ids: Tensor) -> Tensor:
        """`SupportProduct.forward`: K ids a position."""
        self.add(2.0 * ids.numel() * weight.shape[1])
        found: Tensor = function(ctx, hidden, weight, stand_in, ids)
        return found

    def support_backward(self, function: Any, ctx: Any, grad: Tensor) -> Any:
        """Its two gradients."""
        self.add(2.0 * grad.numel() * ctx.saved_tensors[1].shape[1] * sum(ctx.needs_input_grad))
        return function(ctx, grad)

    @contextmanager
    def listening(self, callbacks: list[L.Callback]) -> Iterator[None]:
        """Within, everything above is called; what `callbacks` do is watching."""
        with ExitStack() as stack:
            for owner, name, around in (
                (Student, "hidden", self.student),
                (Teacher, "forward", self.teacher),
                (LMHead, "logits", self.logits),
                (one_pass, "_own", self.watched),
            ):
                stack.enter_context(patch.object(owner, name, _around(around, getattr(owner, name))))
            for name, around in (("forward", self.support), ("backward", self.support_backward)):
                function = staticmethod(_around(around, getattr(SupportProduct, name)))
                stack.enter_context(patch.object(SupportProduct, name, function))
            self.module.manual_backward = partial(self.backward, self.module.manual_backward)  # type: ignore[method-assign]
            for callback in callbacks:
                for name in HOOKS:
                    setattr(callback, name, partial(self.watched, getattr(callback, name)))
            yield


def needed(flops: LayerFlops | None, batch: TokenBatch) -> float:
    """FLOPs of the rows of a batch, those of a beginning that several rows share once; 0 if that is not known."""
    if flops is None:
        return 0.0
    begun: dict[tuple[int, int], int] = {}  # number of what comes before a token, the token → number of both together
    squares = 0.0
    for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
        tokens, before = row[mask.bool()].tolist(), 0
        squares += len(tokens) ** 2
        for token in tokens:
            before = begun.setdefault((before, token), len(begun) + 1)
    return flops.per_token * len(begun) + flops.per_square * squares


def _around(around: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """A function, not a `partial`, so that it becomes a method where it is put into a class."""
    return lambda *args, **kwargs: around(function, *args, **kwargs)


def main() -> None:
    """Run the updates and print the shares."""
    parser = argument_parser(__doc__)
    parser.epilog = "Everything else goes to opdlight.train."
    parser.add_argument("--updates", type=int, default=10, help="the first one of each task has a column of its own")
    args, overrides = parser.parse_known_args()
    if args.updates < 1:
        parser.error("expected --updates of at least 1")
    quiet_libraries()
    try:
        record, peaks = run(args.updates, overrides)
    except OpdError as error:
        raise SystemExit(f"error: {error}") from error
    except InstantiationException as error:  # a constructor that refuses its arguments
        raise SystemExit(f"error: {error.__cause__}") from error
    print(f"matrix product: {peaks[0] / 1e9:,.0f} GFLOP/s before the updates, {peaks[1] / 1e9:,.0f} after them")
    for tasks in record.seconds:
        Console(width=110).print(table(tasks, record.seconds[tasks], record.flops[tasks], max(peaks)))


def table(tasks: str, seconds: list[dict[str, float]], flops: list[dict[str, float]], peak: float) -> Table:
    """Stage by stage; the first update counts only where it is the only one."""

    def mean(values: list[dict[str, float]], stage: str) -> float:
        return statistics.mean(v.get(stage, 0.0) for v in values[1:] or values)

    stages = [s for s in dict.fromkeys(name for values in seconds for name in values) if s != WATCHING]
    rows = [*sorted(stages, key=lambda s: -mean(seconds, s)), WATCHING]
    total, first = sum(mean(seconds, s) for s in stages), sum(seconds[0].get(s, 0.0) for s in stages)
    title = f"{tasks}: mean of {len(seconds[1:] or seconds)} updates, {total:.2f} s; the first one {first:.2f} s"
    made = Table("stage", "first", "seconds", "share", "GFLOP", "GFLOP/s", "of the peak", title=title)
    for stage in rows:
        spent, counted = mean(seconds, stage), mean(flops, stage)
        cells = [f"{seconds[0].get(stage, 0.0):.3f}", f"{spent:.3f}", f"{100 * spent / total:.1f} %"]
        if counted and spent:
            speed = counted / spent
            cells += [f"{counted / 1e9:,.2f}", f"{speed / 1e9:,.1f}", f"{100 * speed / peak:.0f} %"]
        made.add_row(stage, *cells)
    return made


def matrix_product(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of 10 products of two square matrices."""
    size = 8192 if device.type == "cuda" else 1024
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(10):
        start = time.perf_counter()
        one @ other
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(times)


def run(updates: int, overrides: list[str]) -> tuple[Record, list[float]]:
    """The updates, without evaluations, checkpoints and loggers; FLOP/s of a matrix product before and after them."""
    with tempfile.TemporaryDirectory() as folder:
        steps = [f"trainer.max_steps={updates}", "+trainer.limit_val_batches=0", f"run_dir={folder}"]
        cfg = compose("train", TrainConfig, [*overrides, *steps])
        mixture = instantiate(cfg.task)
        module = build(cfg, mixture)
        record = Record(module)
        callbacks = [c for c in instantiate(cfg.callbacks).values() if not isinstance(c, (Checkpoint, ProgressBar))]
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = make_trainer(cfg.trainer, callbacks=[*callbacks, record], default_root_dir=str(Path(folder)), **quiet)
        sizes = {"groups": cfg.rollout.groups, "group_size": cfg.rollout.group_size}
        data = OnPolicyData(mixture, updates=updates, seed=cfg.seed, **sizes)
        measure = partial(matrix_product, trainer.strategy.root_device, _dtype(module.student))
        peaks = [measure()]
        with record.listening(callbacks):
            trainer.fit(module, datamodule=data)
        peaks.append(measure())
        module.source.close()
    return record, peaks


def _dtype(student: Student) -> torch.dtype:
    return student.autocast or next(student.parameters()).dtype


if __name__ == "__main__":
    main()
