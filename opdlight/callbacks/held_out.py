"""Held-out outcomes episode by episode, so that runs can be compared on the same episodes."""

import json
from pathlib import Path

import lightning as L

from opdlight.distillation.module import OnPolicyDistillation
from opdlight.system.lightning_internals import processed_steps


class HeldOutRecorder(L.Callback):
    """Writes `held_out.jsonl` in the run folder: one line a task of each validation, from all ranks.

    A line is `{"step": …, "task": …, "episodes": [[seed, success, reward, turns], …]}`, sorted by seed; `step` counts
    the rollouts that the student has learnt from. Runs of older versions have no `turns`.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / "held_out.jsonl"

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Append the lines of this validation."""
        assert isinstance(pl_module, OnPolicyDistillation)
        if not trainer.is_global_zero:
            return
        step = processed_steps(trainer)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            for task, rows in pl_module.evaluations.episodes.items():
                ordered = sorted(rows.tolist())
                episodes = [[int(seed), int(won), reward, int(turns)] for seed, won, reward, turns, *_ in ordered]
                file.write(json.dumps({"step": step, "task": task, "episodes": episodes}) + "\n")
