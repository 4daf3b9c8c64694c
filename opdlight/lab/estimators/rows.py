"""Bias, variance and signal-to-noise ratio of each estimator's gradient on chains, where the exact one is known."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from opdlight.lab.estimators import chains
from opdlight.losses import DirectEstimate, Loss, SampledToken, SupportMatching
from opdlight.metrics.intervals import Mean


def estimators(k: int) -> dict[str, Loss]:
    """Name → a new instance of the loss, the noisiest first; some losses keep a state between updates."""
    return {
        "sequence level (γ=1)": SampledToken(gamma=1.0),
        "γ=1, running mean": SampledToken(gamma=1.0, baseline="running_mean"),
        "γ=0.9": SampledToken(gamma=0.9),
        "γ=0.5": SampledToken(gamma=0.5),
        "token level (γ=0)": SampledToken(),
        "γ=0, expected baseline": SampledToken(baseline="expected", k=k),
        "k3, differentiated": DirectEstimate(estimate="k3"),
        "top-K + sampled tail": SupportMatching(k=k, outside="sampled_tail", divergence="stop_gradient"),
        "top-K + EMA-PG tail": SupportMatching(k=k, outside="sampled_tail"),
        "top-K truncated": SupportMatching(k=k, outside="ignore"),
        "top-K (LSM)": SupportMatching(k=k),
        "full vocabulary": SupportMatching(support="full_vocabulary"),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One estimator on one pair of chains at one length; its estimate ĝ is of one sequence, a sum over its tokens."""

    estimator: str
    length: int
    seed: int
    second_moment: float  # E‖ĝ‖²
    variance: float  # tr Cov ĝ
    snr: float  # ‖Eĝ‖² / tr Cov ĝ
    sequence_bias: float  # ‖Eĝ − ∇KL‖ / ‖∇KL‖, KL over sequences
    token_bias: float  # the same against the gradient with detached state distributions


def statistics(each: torch.Tensor, exact: torch.Tensor, frozen: torch.Tensor) -> dict[str, float]:
    """The figures of `Row` from the estimates of n sequences `each` [n, P].

    The squared norm of a mean of n estimates is too large by variance/n in expectation, which is subtracted.
    """
    n = len(each)
    mean = each.mean(0)
    variance = float(((each - mean) ** 2).sum() / (n - 1))

    def relative_error(target: torch.Tensor) -> float:
        squared = float(((mean - target.flatten()) ** 2).sum()) - variance / n
        return math.sqrt(max(squared, 0.0)) / float(target.norm())

    signal = max(float((mean**2).sum()) - variance / n, 0.0)
    return {
        "second_moment": float((each**2).sum(1).mean()),
        "variance": variance,
        "snr": signal / variance if variance else math.inf,
        "sequence_bias": relative_error(exact),
        "token_bias": relative_error(frozen),
    }


def chain_rows(
    *, vocabulary: int, k: int, gap: float, lengths: list[int], seeds: list[int], sequences: int
) -> Iterator[Row]:
    """Every estimator at every length on one pair of chains per seed; all estimators get the same sequences."""
    for seed in seeds:
        student, teacher = chains.random_pair(vocabulary, gap, seed)
        for length in lengths:
            generator = torch.Generator().manual_seed(1000 * seed + length)
            states, tokens = chains.sample(student, sequences, length, generator)
            exact, frozen = chains.sequence_gradients(student, teacher, length)
            for name, loss in estimators(k).items():
                chains.remember(loss, student, teacher, length, generator)
                each = chains.gradients(loss, student, teacher, states, tokens)
                yield Row(estimator=name, length=length, seed=seed, **statistics(each, exact, frozen))


def growth(rows: list[Row], name: str, quantity: str, shortest: int) -> Mean:
    """The exponent a of quantity ∝ T^a for T ≥ `shortest`: the slope of a log-log fit, mean over the seeds."""
    slopes = []
    for seed in sorted({r.seed for r in rows}):
        selected = [r for r in rows if r.estimator == name and r.seed == seed and r.length >= shortest]
        x, y = np.log([r.length for r in selected]), np.log([getattr(r, quantity) for r in selected])
        slopes.append(float(np.polyfit(x, y, 1)[0]))
    return Mean.of(slopes)
