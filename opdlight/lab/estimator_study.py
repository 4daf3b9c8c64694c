"""Bias, variance and signal-to-noise of the estimators: on chains that are known exactly, and on the lab models."""

import csv
import io
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from opdlight import run_folder
from opdlight.console import say, show, table, track
from opdlight.lab import chains
from opdlight.lab.estimator_figures import draw
from opdlight.lab.intervals import Mean
from opdlight.lab.trajectories import Real, measure_tasks
from opdlight.losses import DirectEstimate, Loss, SampledToken, SupportMatching


def estimators(k: int) -> dict[str, Loss]:
    """Name → objective, the noisy ones first; fresh, since some remember."""
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
    """One estimator on one chain at one length; everything is of one sequence's estimate, a sum over its tokens."""

    estimator: str
    length: int
    seed: int
    second_moment: float  # E‖ĝ‖²
    variance: float  # tr Cov ĝ
    snr: float  # ‖Eĝ‖² / tr Cov ĝ
    sequence_bias: float  # ‖Eĝ − ∇KL‖ / ‖∇KL‖, KL over sequences
    token_bias: float  # the same against the gradient with frozen visits


def statistics(each: torch.Tensor, exact: torch.Tensor, frozen: torch.Tensor) -> dict[str, float]:
    """The figures of `Row` from the estimates of many sequences [n, P]; squared norms of means less their noise."""
    n = len(each)
    mean = each.mean(0)
    variance = float(((each - mean) ** 2).sum() / (n - 1))

    def off(target: torch.Tensor) -> float:
        squared = float(((mean - target.flatten()) ** 2).sum()) - variance / n
        return math.sqrt(max(squared, 0.0)) / float(target.norm())

    signal = max(float((mean**2).sum()) - variance / n, 0.0)
    return {
        "second_moment": float((each**2).sum(1).mean()),
        "variance": variance,
        "snr": signal / variance if variance else math.inf,
        "sequence_bias": off(exact),
        "token_bias": off(frozen),
    }


def chain_rows(
    *, vocabulary: int, k: int, gap: float, lengths: list[int], seeds: list[int], sequences: int
) -> Iterator[Row]:
    """Every estimator at every length on one pair of chains a seed; all estimators see the same sequences."""
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
    """The exponent a of quantity ∝ T^a from `shortest` on: slope of the line through the logarithms, seed by seed."""
    slopes = []
    for seed in sorted({r.seed for r in rows}):
        mine = [r for r in rows if r.estimator == name and r.seed == seed and r.length >= shortest]
        x, y = np.log([r.length for r in mine]), np.log([getattr(r, quantity) for r in mine])
        slopes.append(float(np.polyfit(x, y, 1)[0]))
    return Mean.of(slopes)


def study(cfg: DictConfig) -> dict[str, float]:
    """Both parts; `chains.csv`, `trajectories.csv`, `estimators.png` and the tables go to the run folder."""
    started = time.perf_counter()
    folder = run_folder.open_run(cfg)
    lengths, seeds = list(cfg.lengths), list(cfg.seeds)
    total = len(estimators(cfg.k)) * len(lengths) * len(seeds)
    settings = {"vocabulary": cfg.vocabulary, "k": cfg.k, "gap": cfg.gap, "sequences": cfg.sequences}
    rows = list(track(chain_rows(**settings, lengths=lengths, seeds=seeds), "chains", total))
    _write(folder / "chains.csv", rows)
    longest = max(lengths)
    shortest = sorted(lengths)[len(lengths) // 2]
    shown = table("estimator", f"variance at T={longest}", "growth of variance", "of the second moment", "SNR", "bias")
    shown.title = f"{len(seeds)} pairs of chains, V={cfg.vocabulary}, K={cfg.k}; growth: exponents of T, T ≥ {shortest}"
    shown.caption = "bias: relative to the gradient of the sequence KL; SNR ‖E ĝ‖² / tr Cov ĝ of one sequence; ± 95 %"
    for name in estimators(cfg.k):
        mine = [r for r in rows if r.estimator == name and r.length == longest]
        cells = [Mean.of([getattr(r, q) for r in mine]) for q in ("variance", "snr", "sequence_bias")]
        slopes = [growth(rows, name, q, shortest) for q in ("variance", "second_moment")]
        shown.add_row(name, str(cells[0]), *map(str, slopes), str(cells[1]), str(cells[2]))
    show(shown)
    real: list[Real] = []
    if cfg.episodes:
        losses = estimators(cfg.trajectory_k)
        del losses["γ=1, running mean"]  # the student stands still: there are no earlier updates to remember
        real = measure_tasks(cfg, losses)
        _write(folder / "trajectories.csv", real)
        for task in dict.fromkeys(r.task for r in real):
            shown = table("estimator", "SNR of a trajectory", "cosine with the full vocabulary's")
            shown.title = f"{task}: {cfg.episodes} trajectories of the lab student, gradient of all its weights"
            shown.caption = "± 95 %, jackknife over trajectories"
            for r in (r for r in real if r.task == task):
                figures = f"{r.snr:.4f} ± {r.snr_half:.4f}", f"{r.cosine:.3f} ± {r.cosine_half:.3f}"
                shown.add_row(r.estimator, *figures)
            show(shown)
    draw(folder / "estimators.png", rows, real)
    seconds = time.perf_counter() - started
    say(f"{seconds:.0f} s, run folder: {folder}")
    return {"seconds": seconds}


def _write(path: Path, rows: list[Row] | list[Real]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(rows[0])])
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    run_folder.write(path, text.getvalue())
