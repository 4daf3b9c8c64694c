"""Faults of servers and engine pools."""

from typing import Any

import lightning as L

from opdlight.distillation.module import OnPolicyDistillation
from opdlight.system.distributed import all_gather

COUNTERS = ("retries", "waited", "restarts", "resent")


class ServerFaults(L.Callback):
    """Logs `server/*` of the teachers and of the engine: totals since the start, over the clients of all ranks.

    Nothing without a server or an engine pool.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the counters after this step."""
        assert isinstance(pl_module, OnPolicyDistillation)
        stats = {"teacher": pl_module.teachers.stats(), "engine": pl_module.source.collector.engine.stats()}
        mine = {
            f"server/{name}/{role}": counts[name]
            for role, counts in stats.items()
            if "waited" in counts  # else it is no server: other engines count other things
            for name in COUNTERS
            if name in counts
        }
        ranks = all_gather(mine)
        for key in mine:
            pl_module.log(key, sum(rank[key] for rank in ranks))
