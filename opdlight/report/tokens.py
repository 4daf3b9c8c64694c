"""Figures of single tokens: both models' probability of the sampled tokens, and how concentrated the signal is."""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.ticker import PercentFormatter

from opdlight.report.draw import GOOD, INK, MUTED, RUNS, TEACHER, Chart, canvas, chart, legend
from opdlight.report.measures import concentration, token_columns
from opdlight.report.read import Run

POINTS = 1200  # most points of a scatter; of more tokens a sample is drawn
TOP = 0.05  # share of the tokens that is marked in the concentration curve


def draw_tokens(runs: Sequence[Run], tasks: Sequence[str]) -> Iterator[Chart]:
    """For each task a scatter per run, then a chart of concentration curves."""
    for task in tasks:
        columns = [token_columns((t for t in r.trajectories if t["task"] == task), "student", "teacher") for r in runs]
        for run, tokens in zip(runs, columns, strict=True):
            if len(tokens):
                yield _scatter(tokens, run, task, f" · run {run.letter}" if len(runs) > 1 else "")
        if any(len(tokens) for tokens in columns):
            yield _concentration([np.abs(t[:, 1] - t[:, 0]) for t in columns], runs, task)


def _scatter(tokens: np.ndarray, run: Run, task: str, of: str) -> Chart:
    total = len(tokens)
    if total > POINTS:
        tokens = tokens[np.sort(np.random.default_rng(0).choice(total, POINTS, replace=False))]
    pi, q = np.exp(tokens).T
    above = q >= pi
    figure, axis = canvas(3.8, 3.7, aspect="equal")
    for at, colour, label in ((above, GOOD, "q ≥ π: raised"), (~above, TEACHER, "q < π: lowered")):
        axis.plot(pi[at], q[at], "o", ms=3.2, color=colour, alpha=0.4, mew=0, label=label, clip_on=False)
    axis.plot([0, 1], [0, 1], color=INK, lw=0.9)
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="student probability π(y)", ylabel="teacher probability q(y)")
    legend(axis, 2)
    some = f"a sample of {POINTS:,} of {total:,}" if total > POINTS else f"all {total:,}"
    caption = (
        f"Both models' probability of each sampled token ({some}); healthy: a cloud along the diagonal, while points "
        "at the lower right are confident mistakes of the student."
    )
    return chart(f"scatter {task} {run.letter}", f"Student and teacher probability · {task}{of}", caption, figure)


def _concentration(gaps: Sequence[np.ndarray], runs: Sequence[Run], task: str) -> Chart:
    figure, axis = canvas(3.8, 3.5)
    marks = []
    for i, (run, sizes) in enumerate(zip(runs, gaps, strict=True)):
        if not len(sizes):
            continue
        share, carried = concentration(sizes)
        colour = RUNS[i % len(RUNS)]
        at = np.linspace(0, 1, 201)
        axis.plot(at, np.interp(at, share, carried), color=colour, lw=2.2, label=run.letter if len(runs) > 1 else None)
        top = float(np.interp(TOP, share, carried))
        axis.plot([TOP], [top], "o", ms=7, color=colour, mec="#fefefe", mew=1.5)
        marks.append(f"{run.letter + ': ' if len(runs) > 1 else ''}{100 * top:.0f} %")
    axis.plot([0, 1], [0, 1], color=MUTED, lw=0.9, ls=(0, (3, 2)))
    axis.set(xlim=(-0.01, 1), ylim=(0, 1.01), xlabel="tokens, largest gap first", ylabel="share of Σ |log q − log π|")
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    legend(axis)
    caption = (
        f"Share of the whole signal that the top x % of the tokens carry (dot: the top {100 * TOP:.0f} % carry "
        f"{', '.join(marks)}; dashed: all alike); healthy: it moves to the upper left corner while the student nears "
        "its teacher, so that few tokens still differ."
    )
    return chart(f"concentration {task}", f"Concentration of the signal · {task}", caption, figure)
