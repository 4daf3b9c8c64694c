"""Trajectories as text, to read."""

import json
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.table import Table

from opdlight.module import OnPolicyDistillation
from opdlight.types import Trajectory


class SampleTable(L.Callback):
    """Writes `samples.jsonl` in the run folder (one trajectory a line) and shows a short table of them.

    Args:
        folder: the run folder.
        every: each `every`-th update.
        count: trajectories a time.
        show: also print a table.
    """

    def __init__(self, folder: str, every: int = 10, count: int = 2, show: bool = False) -> None:
        self.path, self.every, self.count, self.show = Path(folder) / "samples.jsonl", every, count, show

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the first trajectories of this batch."""
        assert isinstance(pl_module, OnPolicyDistillation)
        if batch_idx % self.every or not trainer.is_global_zero:
            return
        chosen: list[Trajectory] = outputs["trajectories"][: self.count]
        rows = [self._row(pl_module, t) for t in chosen]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"update": batch_idx, **row}, ensure_ascii=False) + "\n" for row in rows)
        if self.show:
            table = Table("task", "status", "reward", "last completion", title=f"update {batch_idx}")
            for row in rows:
                last = row["turns"][-1]["completion"] if row["turns"] else ""
                table.add_row(row["task"], row["status"], f"{row['reward']:g}", last[-200:])
            Console().print(table)

    def _row(self, module: OnPolicyDistillation, trajectory: Trajectory) -> dict[str, Any]:
        decode = module.student.tokenizer.decode
        return {
            "task": trajectory.task,
            "seed": trajectory.seed,
            "status": str(trajectory.status),
            "reward": trajectory.reward,
            "metrics": dict(trajectory.metrics),
            "turns": [
                {
                    "prompt": decode(t.prompt_ids),
                    "completion": decode(t.completion_ids),
                    "finish_reason": t.finish_reason,
                    "policy_version": t.policy_version,
                }
                for t in trajectory.turns
            ],
        }
