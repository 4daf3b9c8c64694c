"""How far the engine's policy is from the trainer's, and three estimates of how far the student is from the teacher."""

from collections import defaultdict
from typing import Any

import lightning as L
import torch
from torch import Tensor

from opdlight import metrics
from opdlight.losses.direct import k1, k2, k3
from opdlight.models.lm_head import token_logprobs
from opdlight.module import OnPolicyDistillation
from opdlight.types import SupportScores, TokenBatch


class SampledTokenGaps(L.Callback):
    """Logs `mismatch/*` (engine against trainer) and, where a loss scores the sampled token, `kl/*`, by task.

    The engine's log-probs are of the full distribution at temperature 1, so the trainer's are taken there too, at
    `positions` random loss positions a micro-batch. After the first of several `rollout.mini_batches` the trainer has
    moved on, and the mismatch says by how much.

    Args:
        positions: loss positions a micro-batch at most.
        cap: weights π/μ above this count as clipped (`loss=importance_weighted` has its own).
    """

    def __init__(self, positions: int = 512, cap: float = 2.0) -> None:
        self.positions, self.cap = positions, cap
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)

    @torch.no_grad()
    def on_scores(self, module: OnPolicyDistillation, batch: TokenBatch, hidden: Tensor, scores: SupportScores) -> None:
        """Add up the figures."""
        generator = torch.Generator().manual_seed(module.updates)
        at = metrics.subsample(batch.num_tokens, self.positions, generator).to(hidden.device)
        trainer = token_logprobs(hidden[at], module.student.head(), batch.target_ids[at])
        log_ratio = trainer - batch.sampled_logprobs[at]
        figures = {"mismatch/k1": -log_ratio, "mismatch/clipped": (log_ratio.exp() > self.cap).float()}
        self._add(batch, batch.task_index[at], figures)
        if scores.student_sampled is not None and scores.teacher_sampled is not None:
            pair = scores.student_sampled, scores.teacher_sampled
            self._add(batch, batch.task_index, {"kl/k1": k1(*pair), "kl/k2": k2(*pair), "kl/k3": k3(*pair)})

    def _add(self, batch: TokenBatch, tasks: Tensor, figures: dict[str, Tensor]) -> None:
        for index in tasks.unique().tolist():
            for name, values in figures.items():
                chosen = values[tasks == index]
                self.sums[f"{name}/{batch.tasks[index]}"] += float(chosen.sum())
                self.counts[f"{name}/{batch.tasks[index]}"] += chosen.numel()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the means of this step."""
        for key, total in self.sums.items():
            pl_module.log(key, total / self.counts[key])
        self.sums.clear()
        self.counts.clear()
