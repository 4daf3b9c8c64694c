"""What the student did: rewards, endings, lengths, repetition, staleness."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import lightning as L

from opdlight.batch.rows import count_splits
from opdlight.bounds import PositiveInt
from opdlight.data.requests import OnPolicyData
from opdlight.metrics.actions import Actions
from opdlight.metrics.tokens import repetition_rate
from opdlight.system.distributed import all_gather
from opdlight.types import Status, Trajectory

SUMMED = ("rollout/sampled_tokens", "rollout/row_splits", "rollout/spelled_control_tokens")


class RolloutMetrics(L.Callback):
    """Logs `rollout/*`, `data/*` and the environments' own counters `env/*`, over the trajectories of every rank.

    Args:
        ngram: length of the token n-grams whose repetition within a trajectory is counted.
    """

    def __init__(self, ngram: PositiveInt = 4) -> None:
        self.ngram = ngram

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the figures of this step's trajectories."""
        values: dict[str, list[float]] = defaultdict(list)
        mine = outputs["step"].trajectories
        counters = [pair for rank in all_gather(counters_of(mine)) for pair in rank]
        for rank in all_gather(self.values(mine, outputs["step"].version, counters)):
            for key, found in rank.items():
                values[key] += found
        for key, found in values.items():
            mean = sum(found) / max(len(found), 1)
            pl_module.log(key, sum(found) if key in SUMMED else mean, prog_bar=key.startswith("rollout/reward/"))
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, OnPolicyData):
            for task, epoch in data.train_set.epochs(batch_idx + 1).items():
                pl_module.log(f"data/epoch/{task}", epoch)

    def values(
        self, trajectories: Sequence[Trajectory], version: int, counters: Iterable[tuple[str, str]] = ()
    ) -> dict[str, list[float]]:
        """Key → the values of these trajectories or turns; what is logged is their mean, of `SUMMED` their sum.

        Args:
            trajectories: of this rank.
            version: of the student after the rollout.
            counters: `counters_of` the trajectories of other ranks; those that lack one count as 0.
        """
        values: dict[str, list[float]] = defaultdict(list)
        for t in trajectories:
            values[f"rollout/reward/{t.task}"].append(t.reward)
            values[f"rollout/success/{t.task}"].append(float(t.status is Status.SUCCESS))
            values[f"rollout/turns/{t.task}"].append(float(len(t.turns)))
            values[f"rollout/cut_by_length/{t.task}"].append(float(any(u.finish_reason == "length" for u in t.turns)))
            actions = Actions.of(t.metrics)
            if actions.judged:
                for name, count in (("admissible", actions.admissible), ("wasted", actions.wasted)):
                    each = [1.0] * count + [0.0] * (actions.judged - count)  # so that the mean is over actions
                    values[f"rollout/{name}_actions/{t.task}"] += each
            rate = repetition_rate([turn.completion_ids for turn in t.turns], self.ngram)
            if not math.isnan(rate):
                values[f"rollout/repetition/{t.task}"].append(rate)
            for status in Status:
                values[f"rollout/{status}"].append(float(t.status is status))
            values["rollout/row_splits"].append(float(count_splits(t)))
            values["rollout/spelled_control_tokens"].append(float(t.spelled_control_tokens))
            for turn in t.turns:
                values["rollout/completion_tokens"].append(float(len(turn.completion_ids)))
                values["rollout/sampled_tokens"].append(float(len(turn.completion_ids)))
                values["rollout/staleness"].append(float(version - turn.policy_version))
        for name, task in {*counters_of(trajectories), *counters}:
            mine = [t.metrics.get(name, 0.0) for t in trajectories if t.task == task]
            values[f"env/{name}/{task}"] += mine
        return dict(values)


def counters_of(trajectories: Iterable[Trajectory]) -> list[tuple[str, str]]:
    """The environments' own counters, each with its task."""
    return sorted({(name, t.task) for t in trajectories for name in t.metrics})
