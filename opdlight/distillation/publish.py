"""Send the student's new weights to the rollout engine: the only edge of the data flow that runs back."""

from typing import Any

import lightning as L

from opdlight.distillation.module import OnPolicyDistillation


class PublishWeights(L.Callback):
    """The engine gets the weights after each update, so that the next rollout's version is the update count.

    Beside `staleness: 1` the module publishes by itself, the moment that no rollout goes on. A run that goes on
    publishes before its first rollout, and every evaluation is that of the newest weights.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Publish what a checkpoint has brought."""
        assert isinstance(pl_module, OnPolicyDistillation)
        pl_module.publish()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Publish, once a rollout of the next batch is done."""
        assert isinstance(pl_module, OnPolicyDistillation)
        pl_module.publish()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Publish when the weights have changed; a skipped update publishes nothing."""
        assert isinstance(pl_module, OnPolicyDistillation)
        if not pl_module.staleness:
            pl_module.publish()
