"""Success on held-out episodes with its interval, and pass@k."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from opdlight.metrics.actions import Actions
from opdlight.types import Status, Trajectory


def wilson_interval(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a proportion, 95 % by default (Wilson 1927).

    >>> low, high = wilson_interval(50, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    if n <= 0:
        raise ValueError(f"Expected argument `n` to be positive, but got {n}.")
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def success_interval(per_episode: Sequence[Sequence[float]]) -> tuple[float, tuple[float, float]]:
    """Mean success over episodes × samples, and its 95 % interval with the episode as the independent unit.

    One sample per episode: Wilson's interval. More (avg@n), which are correlated: Wilson's interval at the effective
    number of episodes m = p(1−p) / s², where s² is the variance of the mean over episodes.

    Args:
        per_episode: for each episode the success, 0 or 1, of each of its samples.
    """
    means = [sum(e) / len(e) for e in per_episode]
    n, p = len(means), sum(means) / len(means)
    variance = sum((m - p) ** 2 for m in means) / max(n - 1, 1) / n
    effective = n if variance == 0 or max(map(len, per_episode)) == 1 else max(1, round(p * (1 - p) / variance))
    return p, wilson_interval(p * effective, effective)


def pass_at_k(attempts: int, solved: int, k: int) -> float:
    """Probability that at least one of k attempts solves an episode: 1 − C(n−c, k) / C(n, k), unbiased for n ≥ k.

    Args:
        attempts: n, how many were made.
        solved: c, how many of them solved the episode.
        k: in [1, n].

    Chen et al. 2021 (arXiv 2107.03374), Eq. 1.

    >>> pass_at_k(4, 2, 1), round(pass_at_k(4, 2, 2), 4), pass_at_k(4, 2, 4)
    (0.5, 0.8333, 1.0)
    """
    if not 1 <= k <= attempts or not 0 <= solved <= attempts:
        raise ValueError(f"Expected 1 ≤ k ≤ n and 0 ≤ c ≤ n, but got n={attempts}, c={solved}, k={k}.")
    return 1.0 - math.comb(attempts - solved, k) / math.comb(attempts, k)


def outcome_rows(trajectories: Sequence[Trajectory]) -> Tensor:
    """What is known of each trajectory, [n, 7] in float64, which represents every seed exactly.

    Seed, success (1 or 0), reward, number of turns, and of its actions how many were judged, admissible and wasted.
    """
    counted = [(t, Actions.of(t.metrics)) for t in trajectories]
    rows = [
        [t.seed, t.status is Status.SUCCESS, t.reward, len(t.turns), a.judged, a.admissible, a.wasted]
        for t, a in counted
    ]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Success on held-out episodes."""

    success: float  # mean over episodes of the mean over their samples: pass@1, or avg@n with n samples
    low: float  # 95 % interval, the episode as the unit
    high: float
    pass_at: dict[int, float]  # k → share of episodes solved by at least one of k samples; 1, 2, 4, … and all of them
    episodes: int  # number of distinct episodes
    samples: int  # per episode; the smallest number, where episodes differ
    reward: float
    admissible_actions: float | None = None  # share of the actions of all trajectories; None if none was judged
    wasted_actions: float | None = None

    @classmethod
    def of(cls, trajectories: Sequence[Trajectory]) -> "Result":
        """Summarise the trajectories of one task; those with the same seed are samples of one episode."""
        return cls.of_rows(outcome_rows(trajectories))

    @classmethod
    def of_rows(cls, rows: Tensor) -> "Result":
        """`of`, from the `outcome_rows` of the trajectories in any order."""
        episodes: dict[float, list[tuple[float, float]]] = {}
        for seed, solved_it, reward, *_ in sorted(rows.tolist()):
            episodes.setdefault(seed, []).append((solved_it, reward))
        judged, admissible, wasted = rows[:, 4:].sum(0).tolist()
        solved = [[s for s, _ in e] for e in episodes.values()]
        success, (low, high) = success_interval(solved)
        samples = min(map(len, solved))
        ks = sorted({*(2**i for i in range(samples.bit_length())), samples})
        rewards = [sum(reward for _, reward in e) / len(e) for e in episodes.values()]
        return cls(
            success=success,
            low=low,
            high=high,
            pass_at={k: sum(pass_at_k(len(e), int(sum(e)), k) for e in solved) / len(solved) for k in ks},
            episodes=len(episodes),
            samples=samples,
            reward=sum(rewards) / len(rewards),
            admissible_actions=admissible / judged if judged else None,
            wasted_actions=wasted / judged if judged else None,
        )

    @property
    def title(self) -> str:
        """The name of the figure `success`: pass@1 or avg@n."""
        return "pass@1" if self.samples == 1 else f"avg@{self.samples}"

    @property
    def actions(self) -> str:
        """Their shares in words; empty if no action was judged."""
        if self.admissible_actions is None or self.wasted_actions is None:
            return ""
        return f"admissible actions {100 * self.admissible_actions:.1f} %, wasted {100 * self.wasted_actions:.1f} %"

    def __str__(self) -> str:
        return f"{100 * self.success:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


class HeldOutOutcomes(Metric):
    """The outcomes of one task's held-out episodes, gathered from all ranks by `compute`."""

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, trajectories: Sequence[Trajectory]) -> None:
        """Add the outcomes of this rank's trajectories, of which there may be none."""
        self.rows.append(outcome_rows(trajectories).to(self.device))

    def compute(self) -> Tensor:
        """`outcome_rows` of every rank, for `Result.of_rows`."""
        return dim_zero_cat(self.rows)
