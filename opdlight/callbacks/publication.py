"""What it takes to bring the weights to the engine."""

from typing import Any

import lightning as L

from opdlight.distillation.module import OnPolicyDistillation


class PublicationCost(L.Callback):
    """Logs `publish/bytes` and `publish/seconds` of the last publication; nothing where the engine counts no bytes."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what the last publication took."""
        assert isinstance(pl_module, OnPolicyDistillation)
        if (published := pl_module.source.published) is not None:
            pl_module.log("publish/bytes", published.bytes)
            pl_module.log("publish/seconds", published.seconds)
