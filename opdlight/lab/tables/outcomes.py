"""What the runs of the study came to, read from their folders."""

import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opdlight.lab.tables.runs import Planned
from opdlight.run_folder.summary import SUMMARY


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Held-out success of one task along a run."""

    steps: list[int]  # [P] after which the student was evaluated, the first one 0
    tokens: list[float]  # [P] that the student had sampled by then
    success: Tensor  # [P, E] of each episode, 0 or 1 (the mean of its samples), sorted by episode

    @property
    def means(self) -> list[float]:
        """Success at each evaluation [P]."""
        return self.success.mean(1).tolist()

    @property
    def area(self) -> Tensor:
        """Mean success from the first to the last step, by the trapezoidal rule, of each episode [E]."""
        if len(self.steps) < 2:
            return self.success[-1]
        at = torch.tensor(self.steps, dtype=torch.float64)
        return torch.trapezoid(self.success, at, dim=0) / (at[-1] - at[0])

    @property
    def largest_drop(self) -> float:
        """How far success fell at most from one evaluation to any later one: 0 if it never fell."""
        tops = accumulate(self.means, max)
        return max(top - mean for top, mean in zip(tops, self.means, strict=True))

    def tokens_to(self, level: float) -> float:
        """Sampled tokens until success reaches `level`, linear between evaluations; NaN if it does not."""
        if self.means[0] >= level:
            return self.tokens[0]
        points = list(zip(self.tokens, self.means, strict=True))
        for (t0, m0), (t1, m1) in pairwise(points):
            if m1 >= level:
                return t0 + (t1 - t0) * (level - m0) / (m1 - m0)
        return math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A run and what it came to; of one that failed, as far as it came."""

    run: Planned
    failed: bool
    curves: Mapping[str, Curve]  # by task
    snr: float  # median over updates of optimizer/gradient_snr; NaN if it was not logged
    teachers: Mapping[str, float]  # by task: success of the teacher, where this run has measured it


def read(run: Planned) -> Ran:
    """The outcome of a run, from its folder."""
    rows = _rows(run.folder / "metrics.csv")
    tokens = [0.0, *accumulate(_number(r, "rollout/sampled_tokens", 0.0) for r in rows)]
    found: dict[str, dict[int, Tensor]] = {}
    for line in _lines(run.folder / "held_out.jsonl"):
        found.setdefault(line["task"], {})[line["step"]] = _by_episode(line["episodes"])
    curves = {
        task: Curve(
            steps=sorted(points),
            tokens=[tokens[min(step, len(tokens) - 1)] for step in sorted(points)],
            success=torch.stack([points[step] for step in sorted(points)]),
        )
        for task, points in found.items()
    }
    noise = [v for row in rows if math.isfinite(v := _number(row, "optimizer/gradient_snr", math.nan))]
    return Ran(
        run=run,
        failed=not run.finished,
        curves=curves,
        snr=statistics.median(noise) if noise else math.nan,
        teachers=_teachers(run.folder / SUMMARY),
    )


def _by_episode(episodes: Sequence[Sequence[float]]) -> Tensor:
    """Mean success of each episode's samples [E], in the order of the seeds."""
    of: dict[float, list[float]] = {}
    for seed, success, *_ in episodes:
        of.setdefault(seed, []).append(success)
    return torch.tensor([statistics.fmean(of[seed]) for seed in sorted(of)], dtype=torch.float64)


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of updates in a metrics file, in their order."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row.get("loss/train")]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _teachers(path: Path) -> dict[str, float]:
    if not path.is_file():
        return {}
    tasks = json.loads(path.read_text(encoding="utf-8"))["tasks"]
    return {name: task["teacher"]["success"] for name, task in tasks.items() if task["teacher"]}


def _number(row: Mapping[str, str], key: str, default: float) -> float:
    return float(row[key]) if row.get(key) else default
