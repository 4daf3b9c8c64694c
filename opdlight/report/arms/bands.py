"""The mean over the seeds of an arm along a run, and the band from the lowest to the highest seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opdlight.report.read import Array

MOST_POINTS = 60  # of a line; of more, some at even distances


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Values at n places, over as many seeds as have come that far."""

    at: Array  # [n], ascending
    mean: Array  # [n]
    low: Array  # [n] of the lowest seed
    high: Array  # [n] of the highest one
    whole: int  # of the first so many places every seed has a value


def band_of(lines: Sequence[tuple[Array, Array]]) -> Band:
    """The band of one line a seed, each of them ascending places and values; between its places a line is straight.

    A line counts from its first to its last place, so beyond the shortest the mean is over the others only.
    """
    at = np.unique(np.concatenate([places for places, _ in lines]))
    if len(at) > MOST_POINTS:
        at = at[np.linspace(0, len(at) - 1, MOST_POINTS).round().astype(int)]
    rows = np.array([np.interp(at, places, values, left=np.nan, right=np.nan) for places, values in lines])
    at, rows = at[~np.isnan(rows).all(0)], rows[:, ~np.isnan(rows).all(0)]
    ends = min(float(places[-1]) for places, _ in lines)
    mean, low, high = np.nanmean(rows, 0), np.nanmin(rows, 0), np.nanmax(rows, 0)
    return Band(at=at, mean=mean, low=low, high=high, whole=int((at <= ends).sum()))
