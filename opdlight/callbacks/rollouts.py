"""What the student did: rewards, endings, lengths, repetition, staleness."""

import math
from collections.abc import Iterable
from typing import Any

import lightning as L

from opdlight.collate import count_splits
from opdlight.failure_metrics import repetition_rate
from opdlight.module import OnPolicyDistillation
from opdlight.types import Status


class RolloutMetrics(L.Callback):
    """Logs `rollout/*` and the environments' own counters `env/*`.

    Args:
        ngram: length of the token n-grams whose repetition within a trajectory is counted.
    """

    def __init__(self, ngram: int = 4) -> None:
        self.ngram = ngram

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the trajectories of this step."""
        assert isinstance(pl_module, OnPolicyDistillation)
        trajectories = outputs["trajectories"]
        log = pl_module.log
        for task in dict.fromkeys(t.task for t in trajectories):
            mine = [t for t in trajectories if t.task == task]
            log(f"rollout/reward/{task}", _mean(t.reward for t in mine), prog_bar=True)
            log(f"rollout/success/{task}", _mean(t.status is Status.SUCCESS for t in mine))
            log(f"rollout/turns/{task}", _mean(len(t.turns) for t in mine))
            cut = [any(turn.finish_reason == "length" for turn in t.turns) for t in mine]
            log(f"rollout/cut_by_length/{task}", _mean(cut))
            rates = [repetition_rate([turn.completion_ids for turn in t.turns], self.ngram) for t in mine]
            log(f"rollout/repetition/{task}", _mean(r for r in rates if not math.isnan(r)))
            for name in sorted({name for t in mine for name in t.metrics}):
                log(f"env/{name}/{task}", _mean(t.metrics.get(name, 0.0) for t in mine))
        for status in Status:
            log(f"rollout/{status}", _mean(t.status is status for t in trajectories))
        turns = [turn for t in trajectories for turn in t.turns]
        log("rollout/completion_tokens", _mean(len(turn.completion_ids) for turn in turns))
        log("rollout/row_splits", float(sum(count_splits(t) for t in trajectories)))
        log("rollout/staleness", _mean(outputs["version"] - turn.policy_version for turn in turns))


def _mean(values: Iterable[float]) -> float:
    found = [float(v) for v in values]
    return sum(found) / max(len(found), 1)
