"""Bootstrap intervals that resample trajectories, because the tokens of one trajectory are not independent."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


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


def bootstrap(
    statistic: Callable[[Tensor], Tensor], trajectory: Tensor, *, draws: int = 200, seed: int = 0
) -> list[Interval]:
    """Each figure of `statistic` with its 2.5 % and 97.5 % quantiles over `draws` resamples of trajectories.

    Args:
        statistic: indices [n] of entries, some of them repeated → figures [m].
        trajectory: number of the trajectory of each entry, [N]; entries of a trajectory are drawn together.
        draws: number of resamples.
        seed: of the resampling.

    Source: Efron and Tibshirani 1993, ch. 13, with clusters as units.
    """
    groups = [(trajectory == t).nonzero().squeeze(1) for t in trajectory.unique()]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(groups), (draws, len(groups)), generator=generator).tolist()
    estimate = statistic(torch.arange(len(trajectory))).double()
    resampled = torch.stack([statistic(torch.cat([groups[i] for i in draw])).double() for draw in chosen])
    low, high = resampled.nanquantile(0.025, dim=0).tolist(), resampled.nanquantile(0.975, dim=0).tolist()
    return [Interval(value=v, low=a, high=b) for v, a, b in zip(estimate.tolist(), low, high, strict=True)]
