"""Means, spreads and differences of a few independent runs, with 95 % intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # Student t, 0.975, 1–10 d.f.


def student_t(freedom: int) -> float:
    """The 0.975 quantile of Student's t: from a table up to 10 degrees of freedom, above by its expansion in 1/ν.

    Source: Abramowitz and Stegun 26.7.5; correct to three decimals.

    >>> round(student_t(2), 3), round(student_t(30), 3)
    (4.303, 2.042)
    """
    if freedom < 1:
        raise ValueError(f"Expected argument `freedom` to be at least 1, but got {freedom}.")
    if freedom <= len(QUANTILES):
        return QUANTILES[freedom - 1]
    z, n = 1.959964, freedom
    second, third = 5 * z**5 + 16 * z**3 + 3 * z, 3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z
    return z + (z**3 + z) / (4 * n) + second / (96 * n**2) + third / (384 * n**3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """Mean ± half the width of its 95 % interval; `half` is None for a single run."""

    mean: float
    half: float | None
    runs: int
    not_finite: int  # runs without a finite value; with any, mean and half are NaN

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """x̄ ± t_{0.975, n−1} s/√n of independent runs.

        >>> str(Mean.of([1.0, 2.0, 3.0]))
        '2.00 ± 2.48'
        """
        n, lost = len(values), sum(not math.isfinite(v) for v in values)
        if lost:
            return cls(mean=math.nan, half=math.nan, runs=n, not_finite=lost)
        mean = sum(values) / n
        if n == 1:
            return cls(mean=mean, half=None, runs=1, not_finite=0)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
        return cls(mean=mean, half=student_t(n - 1) * deviation / math.sqrt(n), runs=n, not_finite=0)

    def __str__(self) -> str:
        if self.not_finite:
            return f"{self.not_finite} of {self.runs} not finite"
        size = abs(self.mean)
        form = ",.0f" if 1000 <= size < 1e7 else ".2f" if size == 0 or 0.01 <= size < 1000 else ".2g"
        return f"{self.mean:{form}}" if self.half is None else f"{self.mean:{form}} ± {self.half:{form}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A figure with its 95 % interval; NaN where there are no data."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def percent(self) -> str:
        """The figure and its interval in percent."""
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def plain(self) -> dict[str, float | None]:
        """The figure and its interval for JSON, with None for NaN."""
        figures = {"value": self.value, "low": self.low, "high": self.high}
        return {name: x if math.isfinite(x) else None for name, x in figures.items()}


NOTHING = Interval(value=math.nan, low=math.nan, high=math.nan)


def paired_mean(values: Sequence[float]) -> Interval:
    """The mean of independent values, such as differences paired by seed, ± t_{0.975, n−1} s/√n.

    NaN without values; no interval of a single one.

    >>> str(paired_mean([1.0, 2.0, 3.0]))
    '2 [-0.484, 4.48]'
    """
    found = Mean.of(values) if values else Mean(mean=math.nan, half=None, runs=0, not_finite=0)
    half = math.nan if found.half is None else found.half
    return Interval(value=found.mean, low=found.mean - half, high=found.mean + half)


def chi_square(freedom: int, share: float) -> float:
    """The quantile of the χ² distribution below which `share` of it lies, by bisection of its distribution function.

    >>> round(chi_square(4, 0.975), 3)
    11.143
    """
    half = torch.tensor(freedom / 2, dtype=torch.float64)
    low, high = 0.0, freedom + 20 * math.sqrt(2 * freedom) + 20
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        below = float(torch.special.gammainc(half, torch.tensor(middle / 2, dtype=torch.float64))) < share
        low, high = (middle, high) if below else (low, middle)
    return (low + high) / 2


def spread(values: Sequence[float]) -> Interval:
    """The standard deviation s of n independent values with its interval s √(ν/χ²_{0.975}) to s √(ν/χ²_{0.025}).

    ν = n − 1. It takes the values to be normal. NaN with fewer than two values.
    """
    freedom = len(values) - 1
    if freedom < 1:
        return NOTHING
    found = statistics.stdev(values)
    low, high = (found * math.sqrt(freedom / chi_square(freedom, share)) for share in (0.975, 0.025))
    return Interval(value=found, low=low, high=high)


def crossed_mean(values: Tensor) -> Interval:
    """The mean of values [S, E] of S training seeds × E held-out episodes, with its 95 % interval over both.

    Seeds and episodes are both random and crossed: every seed's student plays the same episodes. With the mean squares
    of seeds, episodes and the rest, MS_s, MS_e, MS_r,

        Var(mean) = (MS_s + MS_e − MS_r) / (S E),   not below what seeds or episodes alone give,

    and Student's t with Satterthwaite's degrees of freedom. For a difference between two arms, `values` are the
    differences of paired cells. A single seed has no interval: NaN.

    Source: Searle, Casella and McCulloch 1992, ch. 4 (two-way crossed, random, one observation a cell).

    >>> crossed_mean(Tensor([[0, 1], [1, 2]])).value
    1.0
    """
    values = values.double()
    seeds, episodes = values.shape
    mean = values.mean()
    if seeds < 2 or episodes < 2:
        return Interval(value=float(mean), low=math.nan, high=math.nan)
    by_seed, by_episode = values.mean(1), values.mean(0)
    rest = values - by_seed[:, None] - by_episode[None, :] + mean
    free_s, free_e = seeds - 1, episodes - 1
    ms_s = float(episodes * by_seed.var())
    ms_e = float(seeds * by_episode.var())
    ms_r = float((rest**2).sum() / (free_s * free_e))
    total = ms_s + ms_e - ms_r
    if total >= max(ms_s, ms_e):
        freedom = total**2 / max(ms_s**2 / free_s + ms_e**2 / free_e + ms_r**2 / (free_s * free_e), 1e-300)
    elif ms_s >= ms_e:  # the estimate of a variance was negative: what one of them gives alone
        total, freedom = ms_s, free_s
    else:
        total, freedom = ms_e, free_e
    half = student_t(max(1, int(freedom))) * math.sqrt(total / (seeds * episodes))
    return Interval(value=float(mean), low=float(mean) - half, high=float(mean) + half)
