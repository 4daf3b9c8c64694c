"""The figures of the toy study: gradient variance, learning curves, and the positions that policies visit."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from opdlight.lab.toy.training import Outcome
from opdlight.lab.toy.walk import WALKS, Walk
from opdlight.system.files import replacing

BINS = np.linspace(-8, 8, 65)


def colour(gamma: float) -> tuple[float, float, float, float]:
    """From dark blue (γ = 0) to orange (γ = 1), the same in every figure."""
    return plt.get_cmap("plasma")(0.05 + 0.75 * gamma)


def draw_variance(outcome: Outcome, window: int, path: Path) -> None:
    """Draw `variance.png`: gradient variance by iteration, with a panel for each task."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", sharey=True)
    for w, (axis, walk) in enumerate(zip(axes, WALKS, strict=True)):
        _curves(axis, outcome, outcome.variance, w, window)
        axis.set(title=_title(walk), xlabel="iteration", yscale="log")
    axes[0].set_ylabel("gradient variance of the output layer")
    _legend(figure, axes[0], outcome)
    figure.suptitle("Variance of the discounted gradient over micro-batches", fontweight="bold")
    _save(figure, path)


def draw_learning(outcome: Outcome, window: int, path: Path) -> None:
    """Draw `learning.png`: reverse KL per step, and distance to the target at the end of the walk."""
    figure, axes = plt.subplots(2, 2, figsize=(12, 8), layout="constrained", sharex=True, sharey="row")
    for w, walk in enumerate(WALKS):
        _curves(axes[0, w], outcome, outcome.reverse_kl, w, window)
        _curves(axes[1, w], outcome, outcome.distance, w, window)
        axes[1, w].axhline(float(outcome.teachers[walk.name].distance.mean()), color="black", ls="--", lw=1)
        axes[0, w].set(title=_title(walk), yscale="log")
        axes[1, w].set(xlabel="iteration", yscale="log")
    axes[0, 0].set_ylabel("KL(student‖teacher) per step (nats)")
    axes[1, 0].set_ylabel("end of the walk to the target (dashed: teacher)")
    _legend(figure, axes[0, 0], outcome)
    figure.suptitle("Do the students follow their teachers?", fontweight="bold")
    _save(figure, path)


def draw_visits(outcome: Outcome, gammas: Sequence[float], path: Path) -> None:
    """Draw `visits.png`: share of walks by time and position over all seeds; one column per γ, then the teacher."""
    columns = [*(f"γ = {g:g}" for g in gammas), "teacher"]
    figure, axes = plt.subplots(
        2,
        len(columns),
        figsize=(3.3 * len(columns), 6.4),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    image = None
    for row, walk in zip(axes, WALKS, strict=True):
        students, teachers = outcome.students[walk.name], outcome.teachers[walk.name]
        groups = [[r for r, (_, g) in enumerate(outcome.runs) if g == gamma] for gamma in gammas]
        shown = [*(students.positions[runs] for runs in groups), teachers.positions]
        for axis, title, positions in zip(row, columns, shown, strict=True):
            share, outside = _shares(positions)
            horizon = share.shape[1] - 1
            image = axis.pcolormesh(
                np.arange(-0.5, horizon + 1), BINS, share, cmap="magma", norm=PowerNorm(0.5, 0, 0.5), rasterized=True
            )
            axis.axhline(walk.target, color="white", ls="--", lw=0.8)
            axis.plot(0, walk.start, "o", color="cyan", ms=5, zorder=3, clip_on=False)
            if outside > 0.0005:
                axis.text(
                    0.98, 0.03, f"{100 * outside:.1f} % outside", color="white", transform=axis.transAxes, ha="right"
                )
            if walk is WALKS[0]:
                axis.set_title(title)
        row[0].set_ylabel(f"{walk.name} task: position")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    assert image is not None
    figure.colorbar(image, ax=axes, label="share of walks", extend="max", pad=0.01)
    figure.suptitle("Where the policies walk after training (dot: start, dashed: target)", fontweight="bold")
    _save(figure, path)


def _curves(axis: Axes, outcome: Outcome, values: Tensor, task: int, window: int) -> None:
    """Draw a curve for each γ: geometric mean over window and seeds; the band is the range over seeds."""
    log_values = values[task::2].double().log()
    size = min(max(1, window // 2), len(log_values))
    means = torch.stack([chunk.mean(0) for chunk in log_values.split(size)]).exp().numpy()
    x = task + 1 + 2 * (np.minimum(np.arange(len(means)) * size + size / 2, len(log_values)) - 0.5)
    means[~np.isfinite(means)] = np.nan
    for gamma in dict.fromkeys(g for _, g in outcome.runs):
        runs = means[:, [r for r, (_, g) in enumerate(outcome.runs) if g == gamma]]
        axis.plot(x, np.exp(np.log(runs).mean(1)), color=colour(gamma), lw=1.8, label=f"γ = {gamma:g}")
        axis.fill_between(x, runs.min(1), runs.max(1), color=colour(gamma), alpha=0.15, lw=0)
    axis.grid(alpha=0.3)


def _shares(positions: Tensor) -> tuple[np.ndarray, float]:
    """Share of walks in each position bin at each time [bins, T+1], and the share of all visits outside the bins."""
    visits = positions.flatten(0, 1).numpy()
    counts = np.stack([np.histogram(visits[:, t], BINS)[0] for t in range(visits.shape[1])], 1)
    share = counts / len(visits)
    return share, float(1 - share.sum() / visits.shape[1])


def _title(walk: Walk) -> str:
    return f"{walk.name} task ({walk.start:+g} to {walk.target:+g})".replace("-", "−")


def _legend(figure: Figure, axis: Axes, outcome: Outcome) -> None:
    handles, labels = axis.get_legend_handles_labels()
    seeds = len({s for s, _ in outcome.runs})
    title = "mean of seeds; band: their range" if seeds > 1 else "one seed"
    figure.legend(handles, labels, title=title, loc="outside right center", frameon=False)


def _save(figure: Figure, path: Path) -> None:
    """Write the figure atomically and close it."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)
