"""Small run folders of a sweep, made up: configuration, held-out episodes and a few logged figures."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from made_up import lines

FIRST = 10**9  # seed of the first held-out episode


def make_arm_run(
    folder: Path,
    *,
    seed: int,
    success: Mapping[str, Sequence[Sequence[float]]],
    overrides: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    tokens: float = 100.0,
    finished: bool = True,
    teacher: float | None = None,
    snr: float | None = 2.0,
) -> Path:
    """A run with an update of so many `tokens` before each evaluation; `success` is [evaluations, episodes] by task."""
    folder.mkdir(parents=True)
    updates = max(map(len, success.values()), default=1) - 1
    plain = {"task": {"tasks": {task: {"teacher": "lab/teacher"} for task in success}}, "loss": {"k": 32}}
    plain |= {"seed": seed, "engine": {"seed": seed}, "run_dir": str(folder), **(config or {})}
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))
    (folder / "overrides.json").write_text(json.dumps([*overrides, f"seed={seed}"]))
    rows: list[dict[str, float]] = [{"step": 0, **{f"val/success/{task}": 0.1 for task in success}}]
    for update in range(updates):
        row = {"step": update, "loss/train": 0.5 / (update + 1), "rollout/sampled_tokens": tokens}
        row |= {f"rollout/success/{task}": 0.5 for task in success}
        noise = {} if snr is None else {"optimizer/gradient_snr": snr, "optimizer/gradient_variance": 0.25}
        rows.append({**row, **noise})
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)
    evaluated = [
        {"step": step, "task": task, "episodes": [[FIRST + e, int(s), float(s), 1] for e, s in enumerate(row)]}
        for task, found in success.items()
        for step, row in enumerate(found)
    ]
    lines(folder / "held_out.jsonl", evaluated)
    if finished:
        result = {"success": 0.5, "low": 0.4, "high": 0.6, "episodes": 4}
        measured = None if teacher is None else {**result, "success": teacher}
        tasks = {task: {"before": result, "after": result, "teacher": measured, "gap_closed": None} for task in success}
        (folder / "summary.json").write_text(json.dumps({"tasks": tasks, "failed": {}}))
    return folder
