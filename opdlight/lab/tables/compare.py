"""The table of a setting: each arm over its seeds, and its difference to the baseline, seed by seed."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opdlight.lab.tables.differences import crossed_mean
from opdlight.lab.tables.outcomes import Curve, Ran
from opdlight.metrics.intervals import Interval, Mean


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRow:
    """One arm on one task. A run that failed counts with the last evaluation that it reached."""

    setting: str
    task: str
    arm: str
    seeds: int
    failed: int  # runs
    after: Interval  # held-out success at the end, over seeds and episodes
    difference: Interval  # of `after` to the baseline's, paired by seed and episode; NaN for the baseline
    area: Interval  # success averaged over the run
    area_difference: Interval
    spread: float  # standard deviation between seeds of the success at the end; NaN with one seed
    drop: Mean  # largest fall of success between two evaluations of a run
    half_gap: Mean | None  # sampled tokens until half of the way to the teacher; None where some run did not get there
    reached: int  # runs that got there
    snr: Mean | None  # of the gradient, median of each run; None where it was not logged


def compare(runs: Sequence[Ran], *, setting: str, task: str, baseline: str, teacher: float | None) -> list[ArmRow]:
    """A row for each arm of a setting that has evaluated the task, in the order of the runs.

    Args:
        runs: all of the study.
        setting: whose arms are compared.
        task: on which.
        baseline: the arm that the others are compared with.
        teacher: success of the task's teacher; None if it is not known.
    """
    by_arm: dict[str, dict[int, Ran]] = {}
    for ran in runs:
        if ran.run.setting == setting and task in ran.curves:
            by_arm.setdefault(ran.run.arm, {})[ran.run.seed] = ran
    base = {seed: ran.curves[task] for seed, ran in by_arm.get(baseline, {}).items()}
    return [_row(list(arm.values()), base, task, teacher) for arm in by_arm.values()]


def _row(runs: Sequence[Ran], base: Mapping[int, Curve], task: str, teacher: float | None) -> ArmRow:
    curves = {ran.run.seed: ran.curves[task] for ran in runs}
    ends, areas = (torch.stack(rows) for rows in zip(*((c.success[-1], c.area) for c in curves.values()), strict=True))
    both = [seed for seed in curves if seed in base]
    itself = all(curves[seed] is base[seed] for seed in both)
    tokens = [c.tokens_to((c.means[0] + teacher) / 2) for c in curves.values()] if teacher is not None else []
    reached = sum(math.isfinite(t) for t in tokens)
    noise = [ran.snr for ran in runs]
    first = runs[0].run
    return ArmRow(
        setting=first.setting,
        task=task,
        arm=first.arm,
        seeds=len(runs),
        failed=sum(ran.failed for ran in runs),
        after=crossed_mean(ends),
        difference=NOTHING if itself or not both else crossed_mean(_paired(curves, base, both, area=False)),
        area=crossed_mean(areas),
        area_difference=NOTHING if itself or not both else crossed_mean(_paired(curves, base, both, area=True)),
        spread=statistics.stdev(ends.mean(1).tolist()) if len(runs) > 1 else math.nan,
        drop=Mean.of([c.largest_drop for c in curves.values()]),
        half_gap=Mean.of(tokens) if tokens and reached == len(tokens) else None,
        reached=reached,
        snr=Mean.of(noise) if all(map(math.isfinite, noise)) else None,
    )


NOTHING = Interval(value=math.nan, low=math.nan, high=math.nan)


def _paired(curves: Mapping[int, Curve], base: Mapping[int, Curve], seeds: Sequence[int], *, area: bool) -> Tensor:
    """Differences [S, E] on the same seeds and episodes."""
    return torch.stack(
        [(curves[s].area - base[s].area) if area else (curves[s].success[-1] - base[s].success[-1]) for s in seeds]
    )
