"""The table of a setting and task: each arm over its seeds, and its difference to the baseline, seed by seed."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opdlight.errors import ConfigError
from opdlight.metrics.intervals import NOTHING, Interval, Mean, crossed_mean, paired_mean, spread
from opdlight.report.arms.outcomes import HeldOut, Ran
from opdlight.report.arms.read import tasks_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRow:
    """One arm on one task. A run that failed counts with the last evaluation that it reached.

    Differences are to the baseline, paired by seed, and NaN for the baseline itself. Those of success, area and largest
    fall are at equal numbers of sampled tokens: of each pair, both runs until the smaller of their two totals.
    """

    setting: str
    task: str
    arm: str
    runs: int  # of the arm, whatever became of them
    failed: int
    unfinished: int  # they still run
    seeds: int  # whose runs have been evaluated, and count here
    pairs: int  # of them, seeds that the baseline has, too
    tokens: float  # that a run has sampled, mean over seeds
    after: Interval  # held-out success at the end, over seeds and episodes
    difference: Interval  # of success, paired by seed and episode
    area: Interval  # success averaged over the sampled tokens
    area_difference: Interval
    spread: Interval  # standard deviation between seeds of the success at the end, with its χ² interval
    drop: Mean  # largest fall of success between two evaluations of a run
    drop_difference: Interval
    teacher: float  # success of the arm's teacher; NaN if it is not known
    half_gap: Mean | None  # sampled tokens until half of the way to the teacher; None where some run did not get there
    half_gap_difference: Interval  # NaN where some run of the pairs did not get there
    reached: int | None  # runs that got there; None without a teacher who is better than the student was before
    snr: Mean | None  # of the gradient, over each run; None where it was not logged
    snr_difference: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The arms of a setting on one task."""

    setting: str
    task: str
    baseline: str
    rows: list[ArmRow]  # the baseline's first

    def by_chance(self, figure: Callable[[ArmRow], Interval]) -> tuple[int, int]:
        """Of how many differences the interval excludes 0, and of how many there is an interval."""
        found = [figure(row) for row in self.rows if math.isfinite(figure(row).low)]
        return sum(not d.low <= 0 <= d.high for d in found), len(found)


def compare(runs: Sequence[Ran], baseline: str | None) -> list[Part]:
    """The arms of every setting and task.

    Args:
        runs: of all settings.
        baseline: name of the arm that others are compared with, or a part of it that no other arm's has; None: the
            first arm of each setting. A setting that lacks it has its first arm.

    Raises:
        ConfigError: if no setting has such an arm.
    """
    parts = []
    settings: dict[str, list[str]] = {}
    for setting, arm in dict.fromkeys((ran.setting, ran.arm) for ran in runs):
        settings.setdefault(setting, []).append(arm)
    chosen = {setting: _named(baseline, arms) for setting, arms in settings.items()}
    if baseline is not None and not any(chosen.values()):
        named = ", ".join(dict.fromkeys(arm for arms in settings.values() for arm in arms))
        expected = f"one of the arms ({named}), or a part of its name that no other has"
        raise ConfigError.wrong("baseline", expected=expected, got=baseline)
    for setting, arms in settings.items():
        mine = [ran for ran in runs if ran.setting == setting]
        first = chosen[setting] or arms[0]
        for task in tasks_of(mine):
            of = {arm: [ran for ran in mine if ran.arm == arm] for arm in dict.fromkeys([first, *arms])}
            rows = [_row(of_arm, of[first], mine, task) for of_arm in of.values()]
            parts.append(Part(setting=setting, task=task, baseline=first, rows=rows))
    return parts


def _named(name: str | None, arms: Sequence[str]) -> str | None:
    if name is None or name in arms:
        return name
    found = [arm for arm in arms if name in arm]
    return found[0] if len(found) == 1 else None


def once_a_seed(runs: Sequence[Ran]) -> list[Ran]:
    """Of several runs of an arm with the same seed one: the first that has finished, else the first."""
    found: dict[tuple[str, str, int], Ran] = {}
    for ran in sorted(runs, key=lambda ran: ran.state != "finished"):
        found.setdefault((ran.setting, ran.arm, ran.seed), ran)
    return [ran for ran in runs if any(ran is kept for kept in found.values())]


def _row(runs: Sequence[Ran], baseline: Sequence[Ran], every: Sequence[Ran], task: str) -> ArmRow:
    mine = {ran.seed: ran for ran in once_a_seed(runs) if ran.counts(task)}
    base = {ran.seed: ran for ran in once_a_seed(baseline) if ran.counts(task)}
    curves = _alike({seed: ran.held_out[task] for seed, ran in mine.items()})
    itself = runs[0].arm == baseline[0].arm
    pairs = {} if itself else _pairs(curves, _alike({seed: ran.held_out[task] for seed, ran in base.items()}))
    teacher = teacher_of(runs, every, task)
    tokens = {seed: _half_gap(curve, teacher) for seed, curve in curves.items()}
    reached = sum(map(math.isfinite, tokens.values()))
    to_beat = teacher_of(baseline, every, task)
    base_tokens = {seed: _half_gap(ran.held_out[task], to_beat) for seed, ran in base.items()}
    noise = [ran.snr for ran in mine.values()]
    ends = [float(curve.success[-1].mean()) for curve in curves.values()]
    return ArmRow(
        setting=runs[0].setting,
        task=task,
        arm=runs[0].arm,
        runs=len(runs),
        failed=sum(ran.state == "failed" for ran in runs),
        unfinished=sum(ran.state == "unfinished" for ran in runs),
        seeds=len(curves),
        pairs=len(pairs),
        tokens=statistics.fmean(curve.tokens[-1] for curve in curves.values()) if curves else math.nan,
        after=_crossed([curve.success[-1] for curve in curves.values()]),
        difference=_crossed([one.success[-1] - other.success[-1] for one, other in pairs.values()]),
        area=_crossed([curve.area for curve in curves.values()]),
        area_difference=_crossed([one.area - other.area for one, other in pairs.values()]),
        spread=spread(ends),
        drop=_mean([curve.largest_drop for curve in curves.values()]),
        drop_difference=paired_mean([one.largest_drop - other.largest_drop for one, other in pairs.values()]),
        teacher=teacher,
        half_gap=_mean(list(tokens.values())) if tokens and reached == len(tokens) else None,
        half_gap_difference=_difference(tokens, base_tokens, pairs),
        reached=reached if any(teacher > curve.means[0] for curve in curves.values()) else None,
        snr=_mean(noise) if noise and all(map(math.isfinite, noise)) else None,
        snr_difference=_difference({s: r.snr for s, r in mine.items()}, {s: r.snr for s, r in base.items()}, pairs),
    )


Pairs = Mapping[int, tuple[HeldOut, HeldOut]]  # seed → run of the arm, run of the baseline


def _pairs(curves: Mapping[int, HeldOut], base: Mapping[int, HeldOut]) -> Pairs:
    """Both runs of each seed on the same episodes, until the smaller of their totals of sampled tokens."""
    found = {}
    for seed in [seed for seed in curves if seed in base]:
        one, other = curves[seed], base[seed]
        until = min(one.tokens[-1], other.tokens[-1])
        episodes = [episode for episode in one.episodes if episode in set(other.episodes)]
        if until > 0 and episodes and not math.isnan(one.tokens[-1] + other.tokens[-1]):
            found[seed] = (one.of(episodes).up_to(until), other.of(episodes).up_to(until))
    return found


def _alike(curves: Mapping[int, HeldOut]) -> dict[int, HeldOut]:
    """The runs of an arm on the episodes that all of them have."""
    everywhere = set.intersection(*(set(curve.episodes) for curve in curves.values())) if curves else set()
    return {seed: curve.of(sorted(everywhere)) for seed, curve in curves.items()} if everywhere else {}


def teacher_of(runs: Sequence[Ran], every: Sequence[Ran], task: str) -> float:
    """Success of the arm's teacher: which its own runs have measured, else the first arm's that has the same one.

    Where no configurations are known, as in the tables of a comparison, an arm that has measured none has the teacher
    of the first arm that has, whichever is the baseline. NaN if it is not known.
    """
    key = f"task.tasks.{task}.teacher"
    own = next((ran.config[key] for ran in runs if key in ran.config), None)
    same = [ran for ran in every if own in (None, ran.config.get(key)) and task in ran.teachers]
    measured = [ran for ran in runs if task in ran.teachers] or [ran for ran in same if ran.arm == same[0].arm]
    return statistics.fmean(ran.teachers[task] for ran in measured) if measured else math.nan


def _half_gap(curve: HeldOut, teacher: float) -> float:
    """Sampled tokens until half of the way to the teacher; NaN if it did not get there, or there is no way to go."""
    before = curve.means[0]
    return curve.tokens_to((before + teacher) / 2) if teacher > before else math.nan


def _crossed(rows: Sequence[Tensor]) -> Interval:
    return crossed_mean(torch.stack(list(rows))) if rows else NOTHING


def _mean(values: Sequence[float]) -> Mean:
    return Mean.of(values) if values else Mean(mean=math.nan, half=None, runs=0, not_finite=0)


def _difference(values: Mapping[int, float], base: Mapping[int, float], pairs: Pairs) -> Interval:
    """Paired by seed; NaN where a run of the pairs has no value, for the others would be a choice of runs."""
    return paired_mean([values[seed] - base[seed] for seed in pairs])
