"""How much of both models the teacher's top-K support holds."""

from collections import defaultdict
from typing import Any

import lightning as L
import torch
from torch import Tensor

from opdlight import metrics
from opdlight.losses import Needs
from opdlight.models.lm_head import log_normaliser, support_logits, top_k
from opdlight.module import OnPolicyDistillation
from opdlight.types import SupportScores, TokenBatch


class TeacherSupportCoverage(L.Callback):
    """Logs `coverage/*` by task: teacher mass, student mass, sampled-token rate in the support, top-K overlap.

    Student mass is the blind spot of a renormalised loss: what lies outside the support gets no gradient. The student's
    normaliser and top-K need work of width V, so they are taken at `positions` random loss positions a micro-batch.

    Args:
        every: measure each `every`-th update.
        positions: loss positions a micro-batch at most.
        k: size of the teacher support where the loss itself asks for another or none.
    """

    def __init__(self, every: int = 1, positions: int = 512, k: int = 32) -> None:
        self.every, self.positions, self.k = every, positions, k
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)

    @torch.no_grad()
    def on_scores(self, module: OnPolicyDistillation, batch: TokenBatch, hidden: Tensor, scores: SupportScores) -> None:
        """Add up the four figures at a sample of positions."""
        if module.updates % self.every:
            return
        temperature = module.sampling.temperature
        support = scores.support
        if support is None or support.kind != "teacher_top_k":  # figures of one support, whatever the loss compares on
            needs = Needs(support="teacher_top_k", k=self.k)
            support = module.teachers.score(batch, needs=needs, chosen=None, temperature=temperature).support
            assert support is not None
        generator = torch.Generator().manual_seed(module.updates)
        at = metrics.subsample(batch.num_tokens, self.positions, generator).to(hidden.device)
        hidden, ids, valid = hidden[at], support.token_ids[at], support.valid[at]
        head = module.student.head()
        logits = support_logits(hidden, head, ids) / temperature
        normaliser = log_normaliser(hidden, head, temperature)
        own, _ = top_k(hidden, head, support.k, temperature=temperature, limit=module.collate.vocabulary_size)
        figures = {
            "teacher_mass": metrics.teacher_mass(support)[at],
            "student_mass": metrics.student_mass(logits, normaliser, valid),
            "sampled_in_support": metrics.sampled_in_support(support, batch.target_ids)[at],
            "overlap": metrics.overlap(own, ids),
        }
        tasks = batch.task_index[at]
        for index in tasks.unique().tolist():
            for name, values in figures.items():
                key = f"coverage/{name}/{batch.tasks[index]}"
                chosen = values[tasks == index]
                self.sums[key] += float(chosen.sum())
                self.counts[key] += chosen.numel()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the means of this update."""
        for key, total in self.sums.items():
            pl_module.log(key, total / self.counts[key], prog_bar=key.startswith("coverage/student_mass"))
        self.sums.clear()
        self.counts.clear()
