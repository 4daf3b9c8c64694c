"""The figures of a run by depth: position in the trajectory, and turn (the paper's second failure mode)."""

import csv
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from opdlight.callbacks.probe_callback import by_task
from opdlight.metrics.tokens import quantiles_by_bucket
from opdlight.models.probe import ProbeResult

COLUMNS = (
    "update", "task", "axis", "start", "end", "tokens", "teacher_mass", "student_mass", "sampled_in_support", "overlap",
    "gap_q10", "gap_q50", "gap_q90", "abs_gap", "student_entropy", "teacher_entropy",
)  # fmt: skip


class DepthProfile(L.Callback):
    """Writes `profile.csv` in the run folder: one line a (step, task, bucket of positions or turn).

    Args:
        folder: the run folder.
    """

    uses_probe = True

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / "profile.csv"

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Append the rows of this step."""
        rows = [
            {"update": batch_idx, "task": task, "axis": axis, **row}
            for task, seen in by_task(outputs["step"].probes).items()
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


def by_bucket(seen: ProbeResult, bucket: Tensor, *, doubling: bool) -> list[dict[str, Any]]:
    """One row a bucket that holds tokens; bucket [n] counts octaves if `doubling`, else units."""
    means = {
        "teacher_mass": seen.teacher_mass,
        "student_mass": seen.student_mass,
        "sampled_in_support": seen.sampled_in_support,
        "overlap": seen.overlap,
        "abs_gap": seen.gap.abs(),
        "student_entropy": seen.student_entropy,
    }
    if seen.teacher_entropy is not None:
        means["teacher_entropy"] = seen.teacher_entropy
    kinds, place = bucket.unique(return_inverse=True)
    count = torch.bincount(place)
    rows: list[dict[str, Any]] = [
        {"start": 2 ** (b - 1) if doubling and b else b, "end": 2**b if doubling else b + 1, "tokens": n}
        for b, n in zip(kinds.tolist(), count.tolist(), strict=True)
    ]
    columns = {n: torch.bincount(place, weights=values.double()) / count for n, values in means.items()}
    quantiles = quantiles_by_bucket(seen.gap, place, len(kinds), (0.1, 0.5, 0.9))
    columns |= dict(zip(("gap_q10", "gap_q50", "gap_q90"), quantiles.T, strict=True))
    for name, values in columns.items():
        for row, value in zip(rows, values.tolist(), strict=True):
            row[name] = f"{value:.6g}"
    return rows
