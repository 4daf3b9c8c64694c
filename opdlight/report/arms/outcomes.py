"""What a run came to, as the comparison of arms needs it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from opdlight.report.read import Curves

State = Literal["finished", "failed", "unfinished"]  # unfinished: it still runs


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Held-out success of one task along a run."""

    steps: list[int]  # [P] after which the student was evaluated, the first one 0
    tokens: list[float]  # [P] that the student had sampled by then; NaN where the run has not counted them
    episodes: list[int]  # [E] their seeds, ascending
    success: Tensor  # [P, E] of each episode, 0 or 1 (the mean of its samples)

    @property
    def means(self) -> list[float]:
        """Success at each evaluation [P]."""
        return self.success.mean(1).tolist()

    @property
    def area(self) -> Tensor:
        """Mean success over the sampled tokens, by the trapezoidal rule, of each episode [E]."""
        at = torch.tensor(self.tokens, dtype=torch.float64)
        if at[-1] == at[0]:
            return self.success[-1]
        return torch.trapezoid(self.success, at, dim=0) / (at[-1] - at[0])

    @property
    def largest_drop(self) -> float:
        """How far success fell at most from one evaluation to any later one: 0 if it never fell."""
        tops = accumulate(self.means, max)
        return max(top - mean for top, mean in zip(tops, self.means, strict=True))

    def tokens_to(self, level: float) -> float:
        """Sampled tokens until success reaches `level`, linear between evaluations; NaN if it does not."""
        if self.means[0] >= level:
            return self.tokens[0]
        points = list(zip(self.tokens, self.means, strict=True))
        for (t0, m0), (t1, m1) in pairwise(points):
            if m1 >= level:
                return t0 + (t1 - t0) * (level - m0) / (m1 - m0)
        return math.nan

    def up_to(self, tokens: float) -> "HeldOut":
        """The run until it had sampled so many tokens; success there is linear between two evaluations.

        `tokens` is at least those of the first evaluation.
        """
        if tokens >= self.tokens[-1]:
            return self
        after = next(i for i, t in enumerate(self.tokens) if t > tokens)
        share = (tokens - self.tokens[after - 1]) / (self.tokens[after] - self.tokens[after - 1])
        there = torch.lerp(self.success[after - 1], self.success[after], share)
        return HeldOut(
            steps=self.steps[: after + 1],
            tokens=[*self.tokens[:after], tokens],
            episodes=self.episodes,
            success=torch.cat([self.success[:after], there[None]]),
        )

    def of(self, episodes: Sequence[int]) -> "HeldOut":
        """Only these of its episodes."""
        columns = [self.episodes.index(episode) for episode in episodes]
        return HeldOut(steps=self.steps, tokens=self.tokens, episodes=list(episodes), success=self.success[:, columns])


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A run and what it came to; of one that failed or still runs, as far as it came."""

    setting: str  # what is trained: runs of different settings are not compared
    arm: str
    seed: int
    folder: Path | None  # None: it was read from the tables of a comparison
    state: State
    held_out: Mapping[str, HeldOut]  # by task
    snr: float  # of the gradient over the run; NaN if it was not logged
    teachers: Mapping[str, float]  # by task: success of the teacher, where this run has measured it
    config: Mapping[str, str]  # dotted key → value
    curves: Curves
    alarms: list[dict[str, Any]]
    notes: list[str]  # what cannot be read, and why it does not count

    @property
    def updates(self) -> int:
        """The number of updates in metrics.csv."""
        steps = self.curves["loss/train"][0] if "loss/train" in self.curves else ()
        return int(max(steps)) + 1 if len(steps) else 0

    def counts(self, task: str) -> bool:
        """Whether there is something of it to compare: not before the first evaluation of a run that still runs."""
        return task in self.held_out and (self.state != "unfinished" or len(self.held_out[task].steps) > 1)
