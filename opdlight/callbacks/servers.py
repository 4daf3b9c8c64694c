"""Faults of servers and engine pools."""

from typing import Any

import lightning as L

from opdlight.distillation.module import OnPolicyDistillation


class ServerFaults(L.Callback):
    """Logs `server/*` of the teachers and of the engine, totals since the start; nothing without a server or a pool."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the counters after this step."""
        assert isinstance(pl_module, OnPolicyDistillation)
        for role, stats in (
            ("teacher", pl_module.teachers.stats()),
            ("engine", pl_module.source.collector.engine.stats()),
        ):
            if "waited" not in stats:  # not a server: other engines count other things
                continue
            for name in ("retries", "waited", "restarts", "resent"):
                if name in stats:
                    pl_module.log(f"server/{name}/{role}", stats[name])
