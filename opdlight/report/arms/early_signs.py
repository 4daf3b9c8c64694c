"""Which figure, at a third of a run, tells how the run ends: rank correlations over the runs of a study."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from opdlight.metrics.intervals import Interval
from opdlight.report.arms.outcomes import HeldOut, Ran
from opdlight.report.read import Curves

PART = 1 / 3  # of the updates of a run
NOT_LEARNING = ("val", "time", "throughput", "memory", "publish")
LEAST_RUNS, LEAST_ARMS = 8, 4  # with a value, or the figure is left out
DRAWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """How a figure at a third of the runs goes with held-out success at their end: rank correlations, −1 to 1.

    `level` is the figure's mean over the second half of the first third of the updates, `change` that mean minus the
    mean over the first half. Intervals: 95 %, bootstrap over arms and over seeds.
    """

    setting: str
    task: str
    figure: str  # a logged key
    kind: str  # level or change
    runs: int
    arms: int
    low: float  # lower and upper quartile of the figure over the runs
    high: float
    strength: Interval
    beyond: Interval  # at equal held-out success at a third: what the figure tells beyond success itself


def early_signs(runs: Sequence[Ran], *, draws: int = DRAWS) -> list[Sign]:
    """Every logged figure of every setting and task, the strongest of each first.

    Args:
        runs: of a study, with an evaluation near a third of the run; those without one, and those that failed, are
            left out.
        draws: resamples of arms.
    """
    found: list[Sign] = []
    for setting in dict.fromkeys(ran.setting for ran in runs):
        mine = [ran for ran in runs if ran.setting == setting and ran.state == "finished"]
        figures = [at_a_third(ran.curves, ran.updates) for ran in mine]
        for task in dict.fromkeys(task for ran in mine for task in ran.held_out):
            signs = _signs(setting, task, mine, figures, draws)
            found += sorted(signs, key=lambda sign: -abs(sign.strength.value))
    return found


def at_a_third(curves: Curves, updates: int) -> dict[tuple[str, str], float]:
    """(key, kind) → what was logged of it in the first third of the updates; without evaluations and times."""
    end = PART * updates
    found = {}
    for key, (steps, values) in curves.items():
        if key.split("/")[0] in NOT_LEARNING:
            continue
        early, late = (values[(steps >= start) & (steps < start + end / 2)] for start in (0, end / 2))
        if len(early) and len(late):
            found[key, "level"] = float(late.mean())
            found[key, "change"] = float(late.mean() - early.mean())
    return found


def _signs(
    setting: str, task: str, runs: Sequence[Ran], figures: Sequence[Mapping[tuple[str, str], float]], draws: int
) -> list[Sign]:
    """The figures of one task, or of no task in particular."""
    found = []
    chosen = [
        (ran, figure) for ran, figure in zip(runs, figures, strict=True)
        if task in ran.held_out and len(ran.held_out[task].steps) > 2
    ]  # fmt: skip
    others = {other for ran in runs for other in ran.held_out} - {task}
    success = (f"val/success/{task}", "level")
    thirds = [_at_a_third(ran.held_out[task]) for ran, _ in chosen]
    chosen = [(ran, {**figure, success: third}) for (ran, figure), third in zip(chosen, thirds, strict=True)]
    names = dict.fromkeys(name for _, figure in chosen for name in figure)
    for key, kind in names:
        if key.split("/")[-1] in others:
            continue
        rows = [(ran, f) for ran, f in chosen if math.isfinite(f.get((key, kind), math.nan))]
        arms = [ran.arm for ran, _ in rows]
        values, third = (
            torch.tensor([figure[name] for _, figure in rows], dtype=torch.float64) for name in ((key, kind), success)
        )
        if len(rows) < LEAST_RUNS or len(set(arms)) < LEAST_ARMS or len(values.unique()) < len(rows) / 2:
            continue  # too few, or a setting of some arms rather than something that is learnt
        ends = torch.tensor([ran.held_out[task].means[-1] for ran, _ in rows], dtype=torch.float64)
        strength, beyond = correlations(
            values, ends, third, _numbers(arms), _numbers([ran.seed for ran, _ in rows]), draws=draws
        )
        low, high = values.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64)).tolist()
        found.append(
            Sign(setting=setting, task=task, figure=key, kind=kind, runs=len(rows), arms=len(set(arms)), low=low,
                 high=high, strength=strength, beyond=beyond)
        )  # fmt: skip
    return found


def _at_a_third(held_out: HeldOut) -> float:
    """Held-out success at a third of the run, linear between evaluations."""
    return float(np.interp(PART * held_out.steps[-1], held_out.steps, held_out.means))


def _numbers(names: Sequence[object]) -> Tensor:
    """0, 1, … for each different name, in the order in which they come."""
    known = list(dict.fromkeys(names))
    return torch.tensor([known.index(name) for name in names])


def correlations(
    values: Tensor, ends: Tensor, third: Tensor, arm: Tensor, seed: Tensor, *, draws: int
) -> tuple[Interval, Interval]:
    """Spearman's ρ of a figure with the end, over all runs and at equal success at a third.

    The latter is partial: (ρ_xy − ρ_xz ρ_yz) / √((1 − ρ_xz²) (1 − ρ_yz²)). Ranks are taken once; the 95 % intervals are
    the 2.5 % and 97.5 % quantiles over resamples of arms and of seeds, a run as often as its arm times its seed.

    Args:
        values: the figure x [R] of each run.
        ends: success y at the end [R].
        third: success z at a third [R].
        arm: number of the arm [R], from 0.
        seed: number of the seed [R], from 0.
        draws: resamples.
    """
    columns = torch.stack([ranks(v) for v in (values, ends, third)], dim=1)  # [R, 3]
    generator = torch.Generator().manual_seed(0)
    weight = torch.ones(1 + draws, len(values), dtype=torch.float64)  # the first row is the estimate
    for unit in (arm, seed):
        count = int(unit.max()) + 1
        drawn = torch.randint(count, (draws, count), generator=generator)
        weight[1:] *= torch.nn.functional.one_hot(drawn, count).sum(1)[:, unit]
    xy, xz, yz = _correlation(columns, weight)[:, [0, 0, 1], [1, 2, 2]].unbind(1)
    partial = (xy - xz * yz) / ((1 - xz**2) * (1 - yz**2)).sqrt()
    partial = partial.where(xz.abs() < 1 - 1e-9, torch.nan)  # the figure is success itself
    return _interval(xy), _interval(partial)


def _correlation(columns: Tensor, weight: Tensor) -> Tensor:
    """Correlations [D, C, C] between columns [R, C], with D weights of the runs [D, R]."""
    total = weight.sum(1)
    mean = weight @ columns / total[:, None]
    product = torch.einsum("dr,ri,rj->dij", weight, columns, columns) / total[:, None, None]
    covariance = product - mean[:, :, None] * mean[:, None, :]
    scale = covariance.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    return covariance / (scale[:, :, None] * scale[:, None, :])


def _interval(drawn: Tensor) -> Interval:
    low, high = drawn[1:].nanquantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
    return Interval(value=float(drawn[0]), low=low, high=high)


def ranks(values: Tensor) -> Tensor:
    """Ranks [N] of values [N] from 0, ties sharing their mean rank.

    >>> ranks(torch.tensor([5.0, 1.0, 5.0])).tolist()
    [1.5, 0.0, 1.5]
    """
    below = (values[None, :] < values[:, None]).sum(1)
    same = (values[None, :] == values[:, None]).sum(1)
    return below.double() + (same.double() - 1) / 2


def signs_csv(signs: Sequence[Sign]) -> str:
    """One line a figure and kind."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    ends = ("", "_low", "_high")
    names = [f"{name}{end}" for name in ("strength", "beyond") for end in ends]
    out.writerow(["setting", "task", "figure", "kind", "runs", "arms", "quartile_low", "quartile_high", *names])
    for s in signs:
        numbers = [v for i in (s.strength, s.beyond) for v in (i.value, i.low, i.high)]
        out.writerow([s.setting, s.task, s.figure, s.kind, s.runs, s.arms, f"{s.low:.4g}", f"{s.high:.4g}",
                      *(f"{v:.3f}" if math.isfinite(v) else "" for v in numbers)])  # fmt: skip
    return text.getvalue()
