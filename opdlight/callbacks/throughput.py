"""Where the time of a step goes."""

from typing import Any

import lightning as L

from opdlight.distillation.module import OnPolicyDistillation
from opdlight.system.distributed import all_gather


class Throughput(L.Callback):
    """Logs `time/{part}` in seconds and `throughput/*` in tokens per second; keeps the totals of the whole run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.generated = 0
        self.trained = 0

    def state_dict(self) -> dict[str, Any]:
        """The totals."""
        return {"seconds": dict(self.seconds), "generated": self.generated, "trained": self.trained}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the totals."""
        self.seconds, self.generated, self.trained = (state_dict[n] for n in ("seconds", "generated", "trained"))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the seconds and tokens of this step."""
        assert isinstance(pl_module, OnPolicyDistillation)
        seconds = dict(pl_module.timer.seconds)
        generated = sum(
            all_gather(sum(len(turn.completion_ids) for t in outputs["step"].trajectories for turn in t.turns))
        )
        trained = int(outputs["step"].loss_tokens)
        for stage, value in seconds.items():
            pl_module.log(f"time/{stage}", value)
            self.seconds[stage] = self.seconds.get(stage, 0.0) + value
        rollout = seconds.pop("rollout", 0.0)
        if rollout:
            pl_module.log("throughput/rollout", generated / rollout)
        if seconds:
            pl_module.log("throughput/train", trained / sum(seconds.values()))
        self.generated += generated
        self.trained += trained
