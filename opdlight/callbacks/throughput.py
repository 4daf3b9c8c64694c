"""Where the time of a step goes, how much of the GPUs it uses, and how much memory it takes."""

import resource
import sys
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch

from opdlight.batch.rows import row_lengths
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.models import Teacher
from opdlight.models.flops import LayerFlops, forward_flops, peak_flops, training_flops
from opdlight.system.distributed import all_gather
from opdlight.types import Trajectory

GIB = 2**30


class Throughput(L.Callback):
    """Logs `time/{part}`, `throughput/*` and `memory/*` over all ranks; keeps the totals of the whole run.

    A part's seconds are the mean over the ranks, so that the parts add up to the step; that the others wait for one is
    in the part in which they do.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.generated = 0
        self.trained = 0
        self.flops: dict[str, LayerFlops] = {}  # task → one token's training; empty where that is not known
        self.peak: int | None = None  # FLOP/s of this rank's device; None: not known, as on a CPU

    def state_dict(self) -> dict[str, Any]:
        """The totals."""
        return {"seconds": dict(self.seconds), "generated": self.generated, "trained": self.trained}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the totals."""
        self.seconds, self.generated, self.trained = (state_dict[n] for n in ("seconds", "generated", "trained"))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count what the models cost, and find out what the device can do."""
        assert isinstance(pl_module, OnPolicyDistillation)
        self.flops = training_cost(pl_module)
        if pl_module.device.type == "cuda":
            weights = next(iter(pl_module.student.trainable_parameters()))
            self.peak = peak_flops(pl_module.device, pl_module.student.autocast or weights.dtype)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure the memory of this step alone."""
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the seconds, tokens and memory of this step."""
        assert isinstance(pl_module, OnPolicyDistillation)
        step = outputs["step"]
        ranks = all_gather((dict(pl_module.timer.seconds), self._counts(step.trajectories), self._memory(pl_module)))
        parts = dict.fromkeys(name for seconds, *_ in ranks for name in seconds)
        seconds = {name: sum(mine.get(name, 0.0) for mine, *_ in ranks) / len(ranks) for name in parts}
        generated, flops, peak = (sum(values) for values in zip(*(counts for _, counts, _ in ranks), strict=True))
        for name, value in seconds.items():
            pl_module.log(f"time/{name}", value)
            self.seconds[name] = self.seconds.get(name, 0.0) + value
        if rollout := max(mine.get("rollout", 0.0) for mine, *_ in ranks):
            pl_module.log("throughput/rollout", generated / rollout)
        if train := sum(value for name, value in seconds.items() if name != "rollout"):
            pl_module.log("throughput/train", step.loss_tokens / train)
            if flops and peak:
                pl_module.log("throughput/mfu", flops / (peak * train))
        if len(step.rank_tokens) > 1 and sum(step.rank_tokens):
            mean = sum(step.rank_tokens) / len(step.rank_tokens)
            pl_module.log("throughput/rank_imbalance", max(step.rank_tokens) / mean)
        for name in ranks[0][2]:
            pl_module.log(f"memory/{name}", max(memory[name] for *_, memory in ranks) / GIB)
        self.generated += int(generated)
        self.trained += int(step.loss_tokens)

    def _counts(self, trajectories: Sequence[Trajectory]) -> tuple[int, float, int]:
        """Tokens that were generated on this rank, FLOPs of training on them, and this rank's FLOP/s; 0: not known."""
        generated = sum(len(turn.completion_ids) for t in trajectories for turn in t.turns)
        if not self.peak:
            return generated, 0.0, 0
        flops = sum(self.flops[t.task].of(row_lengths(t)) for t in trajectories if t.task in self.flops)
        return generated, flops, self.peak

    def _memory(self, module: OnPolicyDistillation) -> dict[str, int]:
        """Bytes: the most that this step's tensors took on the GPU, and this process at any time since its start."""
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if module.device.type != "cuda":
            return {"host": host}
        return {"gpu": torch.cuda.max_memory_allocated(module.device), "host": host}


def training_cost(module: OnPolicyDistillation) -> dict[str, LayerFlops]:
    """Task → what a row costs: the student forward and backward, its teacher forward if it runs here.

    Empty where it is not known (`forward_flops`).
    """
    student = training_flops(module.student.model)
    found = {}
    for task in module.teachers.teacher_of:
        teacher = module.teachers.of(task)
        forward = (
            forward_flops(teacher.model) if isinstance(teacher, Teacher) else LayerFlops(per_token=0, per_square=0)
        )
        if student is None or forward is None:
            return {}
        found[task] = LayerFlops(
            per_token=student.per_token + forward.per_token, per_square=student.per_square + forward.per_square
        )
    return found
