"""The figures of a run by depth: position in the trajectory, and turn (the paper's second failure mode)."""

import csv
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from opdlight.callbacks.watch import TokenWatch
from opdlight.failure_metrics import quantiles_by_bucket
from opdlight.reading import Reading

COLUMNS = (
    "update", "task", "axis", "start", "end", "tokens", "teacher_mass", "student_mass", "sampled_in_support", "overlap",
    "gap_q10", "gap_q50", "gap_q90", "abs_gap", "student_entropy", "teacher_entropy",
)  # fmt: skip


class DepthProfile(TokenWatch):
    """Writes `profile.csv` in the run folder: one line a (step, task, bucket of positions or turn).

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.path = Path(folder) / "profile.csv"

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Append the lines of this step."""
        rows = [
            {"update": batch_idx, "task": task, "axis": axis, **row}
            for task, seen in self.by_task().items()
            for axis, at in (("position", octave(seen.position)), ("turn", seen.turn))
            for row in by_bucket(seen, at, doubling=axis == "position")
        ]
        if not rows or not trainer.is_global_zero:
            return
        new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerows(rows)


def octave(position: Tensor) -> Tensor:
    """0 for position 0, b for positions in [2^(b−1), 2^b): the same buckets in every run.

    >>> octave(torch.tensor([0, 1, 2, 3, 4, 7, 8])).tolist()
    [0, 1, 2, 2, 3, 3, 4]
    """
    return torch.frexp(position.double())[1]


def by_bucket(seen: Reading, bucket: Tensor, *, doubling: bool) -> list[dict[str, Any]]:
    """One row a bucket that holds tokens; bucket [n] counts octaves if `doubling`, else units."""
    found = []
    for b in bucket.unique().tolist():
        mine = seen.where(bucket == b)
        low, middle, high = quantiles_by_bucket(mine.gap, torch.zeros_like(mine.token), 1, (0.1, 0.5, 0.9))[0].tolist()
        means = {
            "teacher_mass": mine.teacher_mass,
            "student_mass": mine.student_mass,
            "sampled_in_support": mine.sampled_in_support,
            "overlap": mine.overlap,
            "abs_gap": mine.gap.abs(),
            "student_entropy": mine.student_entropy,
        }
        row: dict[str, Any] = {name: f"{float(values.mean()):.6g}" for name, values in means.items()}
        if mine.teacher_entropy is not None:
            row["teacher_entropy"] = f"{float(mine.teacher_entropy.mean()):.6g}"
        row |= {"gap_q10": f"{low:.6g}", "gap_q50": f"{middle:.6g}", "gap_q90": f"{high:.6g}"}
        start, end = ((2 ** (b - 1) if b else 0), 2**b) if doubling else (b, b + 1)
        found.append({"start": start, "end": end, "tokens": len(mine.token), **row})
    return found
