"""Send the student's new weights to the rollout engine: the only edge of the data flow that runs back."""

from typing import Any

import lightning as L

from opdlight.module import OnPolicyDistillation


class PublishWeights(L.Callback):
    """After each update the engine gets the weights, so that the next rollout's version is the update count."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Publish when the weights have changed; a skipped update publishes nothing."""
        assert isinstance(pl_module, OnPolicyDistillation)
        engine = pl_module.collector.engine
        if engine.policy_version != pl_module.updates:
            with pl_module.stage("publish"):
                engine.update_weights(pl_module.student.named_weights(), pl_module.updates)
