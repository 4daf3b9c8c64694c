"""Reads from a run folder what the comparison of arms needs; large files, such as trajectories, are left alone."""

import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from opdlight.config.folders import LOCK, is_locked
from opdlight.report.arms.outcomes import HeldOut, Ran, State
from opdlight.report.read import Curves, read_config, read_curves, read_summary
from opdlight.report.rows import alarm_row, json_lines
from opdlight.report.text import visible

SAMPLED = "rollout/sampled_tokens"
Evaluations = dict[str, dict[int, dict[int, float]]]  # task → step → seed of the episode → success


def read_arm_run(folder: Path, *, setting: str = "", arm: str = "") -> Ran:
    """The outcome of the run in `folder`, which need not have finished, nor even begun."""
    notes: list[str] = []
    config = read_config(folder / "config.yaml", notes)
    curves = read_curves(folder / "metrics.csv", notes)
    summary = read_summary(folder / "summary.json", notes)
    evaluations: Evaluations = {}
    for line in json_lines(folder / "held_out.jsonl", _held_out_row, notes):
        evaluations.setdefault(line["task"], {})[line["step"]] = line["success"]
    if SAMPLED not in curves and any(max(steps) > 0 for steps in evaluations.values()):
        notes.append(f"{SAMPLED} is not in metrics.csv: it cannot be compared at equal numbers of sampled tokens.")
    tasks = summary.get("tasks", {}).items()
    return Ran(
        setting=setting,
        arm=arm,
        seed=_seed(folder, config),
        folder=folder.resolve(),
        state=_state(folder, summary),
        held_out=held_out(evaluations, _counter(curves)),
        snr=_snr(curves),
        teachers={name: task["teacher"]["success"] for name, task in tasks if task["teacher"]},
        config=config,
        curves=curves,
        alarms=json_lines(folder / "alarms.jsonl", alarm_row, notes),
        notes=notes,
    )


def held_out(evaluations: Evaluations, tokens: Callable[[int], float | None]) -> dict[str, HeldOut]:
    """Held-out success by task; `tokens` says how many were sampled before a step, None if that is not written yet."""
    found = {}
    for task, points in evaluations.items():
        steps = [step for step in sorted(points) if tokens(step) is not None]
        episodes = sorted(set.intersection(*(set(points[step]) for step in steps))) if steps else []
        if episodes:
            found[task] = HeldOut(
                steps=steps,
                tokens=[t for step in steps if (t := tokens(step)) is not None],
                episodes=episodes,
                success=torch.tensor([[points[s][e] for e in episodes] for s in steps], dtype=torch.float64),
            )
    return found


def _snr(curves: Curves) -> float:
    """Of the gradient over the run: Σ (‖g‖² − variance) / Σ variance over its updates; NaN if it was not logged.

    The ratio of the sums, because with few micro-batches a single update's variance may be near 0.
    """
    snr, variance = (curves.get(f"optimizer/gradient_{name}", (None, None))[1] for name in ("snr", "variance"))
    if snr is None or variance is None or not variance.sum() > 0:
        return math.nan
    return float((snr * variance).sum() / variance.sum())


def _counter(curves: Curves) -> Callable[[int], float | None]:
    """The tokens that were sampled in the updates before a step."""
    updates = max((int(steps.max()) + 1 for key, (steps, _) in curves.items() if key == "loss/train"), default=0)
    by_update = dict(zip(*(column.tolist() for column in curves[SAMPLED]), strict=True)) if SAMPLED in curves else {}

    def tokens(step: int) -> float | None:
        if step > updates:
            return None
        if step and not by_update:
            return math.nan
        return math.fsum(count for update, count in by_update.items() if update < step)

    return tokens


def _held_out_row(raw: Any) -> dict[str, Any]:
    """A line of held_out.jsonl: mean success of each episode's samples."""
    samples: dict[int, list[float]] = {}
    for seed, success, *_ in raw["episodes"]:
        samples.setdefault(int(seed), []).append(float(success))
    means = {seed: statistics.fmean(values) for seed, values in samples.items()}
    if not means or not all(map(math.isfinite, means.values())):
        raise ValueError("no episodes")
    return {"step": int(raw["step"]), "task": visible(raw["task"]), "success": means}


def _state(folder: Path, summary: Mapping[str, Any]) -> State:
    if summary and not summary.get("failed"):
        return "finished"
    starting = not (folder / LOCK).exists() and all(file.stat().st_size == 0 for file in folder.iterdir())
    return "unfinished" if starting or is_locked(folder / LOCK) else "failed"


def _seed(folder: Path, config: Mapping[str, str]) -> int:
    """The run's seed; where it has written no configuration, the number at the end of its folder's name."""
    for text in (config.get("seed", ""), *re.findall(r"\d+$", folder.name)):
        if re.fullmatch(r"-?\d+", text):
            return int(text)
    return 0


def tasks_of(runs: Iterable[Ran]) -> list[str]:
    """The tasks that were evaluated, in the order in which they appear."""
    return list(dict.fromkeys(task for ran in runs for task in ran.held_out))
