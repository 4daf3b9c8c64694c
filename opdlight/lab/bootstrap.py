"""Bootstrap intervals that resample trajectories, because the tokens of one trajectory are not independent."""

from collections.abc import Callable

import torch
from torch import Tensor

from opdlight.metrics.intervals import Interval


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
