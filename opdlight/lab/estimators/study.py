"""Bias, variance and signal-to-noise ratio of the estimators: on chains with known gradients, and on the lab models."""

import csv
import io
import time
from dataclasses import asdict, fields
from pathlib import Path

from omegaconf import DictConfig

from opdlight.lab.estimators.figures import draw
from opdlight.lab.estimators.rows import Row, chain_rows, estimators, growth
from opdlight.lab.estimators.trajectories import Real, measure_tasks
from opdlight.metrics.intervals import Mean
from opdlight.run_folder.folder import open_run
from opdlight.system.console import say, show, table, track
from opdlight.system.files import write_text


def study(cfg: DictConfig) -> dict[str, float]:
    """Run both parts, print tables, write `chains.csv`, `trajectories.csv` and `estimators.png` to the run folder."""
    started = time.perf_counter()
    folder = open_run(cfg)
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
        selected = [r for r in rows if r.estimator == name and r.length == longest]
        cells = [Mean.of([getattr(r, q) for r in selected]) for q in ("variance", "snr", "sequence_bias")]
        slopes = [growth(rows, name, q, shortest) for q in ("variance", "second_moment")]
        shown.add_row(name, str(cells[0]), *map(str, slopes), str(cells[1]), str(cells[2]))
    show(shown)
    real: list[Real] = []
    if cfg.episodes:
        losses = estimators(cfg.trajectory_k)
        del losses["γ=1, running mean"]  # the student is not trained: there is no earlier update
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
    write_text(path, text.getvalue())
