"""Differences between two arms with intervals over seeds and over episodes at the same time."""

import math

from torch import Tensor

from opdlight.lab.bootstrap import Interval
from opdlight.lab.intervals import student_t


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
