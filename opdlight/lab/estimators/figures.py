"""The figure of the estimator study."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from opdlight.lab.estimators.rows import Row
from opdlight.lab.estimators.trajectories import Real
from opdlight.system.files import replacing


def draw(path: Path, rows: list[Row], real: list[Real]) -> None:
    """Draw variance, bias and SNR against length, and the SNR of real trajectories; bands show the range."""
    names = list(dict.fromkeys(r.estimator for r in rows))
    colours = dict(zip(names, plt.get_cmap("turbo")(np.linspace(0.05, 0.95, len(names))), strict=True))
    figure, axes = plt.subplots(2, 2, figsize=(14, 10), layout="constrained")
    panels = {
        "variance": "variance tr Cov ĝ of one sequence (nats²)",
        "sequence_bias": "bias ‖E ĝ − ∇KL‖ / ‖∇KL‖ of the sequence KL",
        "snr": "signal to noise ‖E ĝ‖² / tr Cov ĝ",
    }
    lengths = sorted({r.length for r in rows})
    for axis, (quantity, title) in zip(axes.flat, panels.items(), strict=False):
        for name in names:
            values = [[getattr(r, quantity) for r in rows if r.estimator == name and r.length == t] for t in lengths]
            axis.plot(lengths, [np.median(v) for v in values], color=colours[name], label=name, linewidth=1.6)
            axis.fill_between(
                lengths, [min(v) for v in values], [max(v) for v in values], color=colours[name], alpha=0.1
            )
        axis.set(title=title, xlabel="length T (tokens)", xscale="log")
        axis.set_xticks(lengths, [str(t) for t in lengths])
        axis.minorticks_off()
        axis.set_yscale("symlog", linthresh=1e-3) if quantity == "sequence_bias" else axis.set_yscale("log")
        if quantity == "sequence_bias":
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    _guides(axes[0, 0], rows)
    axes[0, 0].legend(fontsize=7)
    axis = axes[1, 1]
    tasks = list(dict.fromkeys(r.task for r in real))
    for number, task in enumerate(tasks):
        offset = 0.25 * (number - (len(tasks) - 1) / 2)
        selected = [r for r in real if r.task == task]
        at = np.arange(len(selected)) + offset
        error = [r.snr_half for r in selected]
        axis.errorbar([r.snr for r in selected], at, xerr=error, fmt="o", capsize=2, label=task)
        axis.set_yticks(np.arange(len(selected)), [r.estimator for r in selected])
    axis.set(title="signal to noise of one real trajectory (95 % jackknife)", xlabel="‖E ĝ‖² / tr Cov ĝ")
    axis.set_xscale("symlog", linthresh=0.01)
    axis.grid(alpha=0.3)
    axis.invert_yaxis()
    if tasks:
        axis.legend()
    else:
        axis.set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)


def _guides(axis: plt.Axes, rows: list[Row]) -> None:
    """Draw dashed lines that grow as T² and T⁴, the paper's worst cases."""
    lengths = np.array(sorted({r.length for r in rows}), dtype=float)
    start = np.median([r.variance for r in rows if r.length == lengths[0] and r.variance])
    for power in (2, 4):
        axis.plot(lengths, start * (lengths / lengths[0]) ** power, "k--", linewidth=0.8, alpha=0.6)
        axis.annotate(f"T{'²' if power == 2 else '⁴'}", (lengths[-1], start * (lengths[-1] / lengths[0]) ** power))
