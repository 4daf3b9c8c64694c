"""Where the time of a training step goes: `python tools/bench_step.py [Hydra overrides]` prints one table a task.

With the callbacks of the config; the whole cost of those that watch (probing tokens in both models, what they do
with it, what they write) is the last line.

Example: python tools/bench_step.py --updates 10 task=sums loss=sampled_token
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from rich.console import Console
from rich.table import Table

from opdlight.config import TrainConfig, compose, instantiate, make_trainer
from opdlight.data.requests import OnPolicyData
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.errors import OpdError
from opdlight.models import teacher
from opdlight.system.arguments import argument_parser
from opdlight.train.build import build


class Record(L.Callback):
    """Keeps the stage seconds of every update, by task."""

    def __init__(self) -> None:
        self.steps: dict[str, list[dict[str, float]]] = {}
        self.hidden = 0.0  # seconds of watching that no stage shows

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its seconds added to `hidden`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.hidden += time.perf_counter() - start

        return call

    def watch(self, callbacks: Iterable[L.Callback]) -> None:
        """Time what the watching callbacks do at the end of a step, and what the teacher does for them."""
        for callback in callbacks:
            callback.on_train_batch_end = self.timed(callback.on_train_batch_end)  # type: ignore[method-assign]
        teacher.probe_scores = self.timed(teacher.probe_scores)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After publication, so that its time is in."""
        assert isinstance(pl_module, OnPolicyDistillation)
        tasks = " + ".join(dict.fromkeys(t.task for t in outputs["step"].trajectories))
        seconds = dict(pl_module.timer.seconds)
        seconds["watching in all"] = self.hidden + seconds.get("watch", 0.0)
        self.hidden = 0.0
        self.steps.setdefault(tasks, []).append(seconds)
        print(f"update {batch_idx + 1}: {sum(pl_module.timer.seconds.values()):.2f} s", flush=True)


def main() -> None:
    """Run the updates and print the shares."""
    parser = argument_parser(__doc__)
    parser.epilog = "Everything else goes to opdlight.train."
    parser.add_argument("--updates", type=int, default=10, help="the first one of each task warms up and is left out")
    args, overrides = parser.parse_known_args()
    if args.updates < 1:
        parser.error("expected --updates of at least 1")
    try:
        record = run(args.updates, overrides)
    except OpdError as error:
        raise SystemExit(f"error: {error}") from error
    for tasks, seconds in record.steps.items():
        kept = seconds[1:] or seconds
        total = statistics.mean(sum(v for n, v in s.items() if n != "watching in all") for s in kept)
        table = Table("stage", "seconds", "share", title=f"{tasks}: mean of {len(kept)} updates, {total:.2f} s")
        for stage in dict.fromkeys(name for s in kept for name in s):
            mean = statistics.mean(s.get(stage, 0.0) for s in kept)
            table.add_row(stage, f"{mean:.3f}", f"{100 * mean / total:.1f} %")
        Console().print(table)


def run(updates: int, overrides: list[str]) -> Record:
    """The updates, without evaluations, checkpoints and loggers."""
    with tempfile.TemporaryDirectory() as folder:
        steps = [f"trainer.max_steps={updates}", "+trainer.limit_val_batches=0", f"run_dir={folder}"]
        cfg = compose("train", TrainConfig, [*overrides, *steps])
        mixture = instantiate(cfg.task)
        module = build(cfg, mixture)
        record = Record()
        callbacks = [c for c in instantiate(cfg.callbacks).values() if not isinstance(c, (Checkpoint, ProgressBar))]
        record.watch(callbacks)
        callbacks.append(record)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = make_trainer(cfg.trainer, callbacks=callbacks, default_root_dir=str(Path(folder)), **quiet)
        sizes = {"groups": cfg.rollout.groups, "group_size": cfg.rollout.group_size}
        trainer.fit(module, datamodule=OnPolicyData(mixture, updates=updates, seed=cfg.seed, **sizes))
        module.source.close()
    return record


if __name__ == "__main__":
    main()
