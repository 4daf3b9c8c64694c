"""Figures by position in a trajectory: coverage and the gap."""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

from opdlight.report.draw import HEAT, INK, MUTED, STUDENT, TEACHER, Chart, canvas, chart, legend
from opdlight.report.measures import THIRDS, Band, heat, thirds
from opdlight.report.read import Run
from opdlight.report.rows import Depth

COLUMNS = 60  # most columns of a heat map; with more updates, neighbours share a column


def draw_depth(runs: Sequence[Run], tasks: Sequence[str]) -> Iterator[Chart]:
    """Heat maps of all runs and tasks on one scale, then the gap by position, on one scale for each task."""
    low = any(
        row.values.get("student_mass", 1.0) < 0.5 for run in runs for row in run.profile if row.axis == "position"
    )
    for task in tasks:
        for run in runs:
            if rows := rows_of(run, task, "position"):
                yield _heat(rows, run, task, _of(run, runs), 0.0 if low else 0.5)
    for task in tasks:
        found = [(run, bands) for run in runs if any(bands := thirds(rows_of(run, task, "position")))]
        ends = [gap for _, bands in found for band in bands for gaps in band.values() for gap in gaps]
        for run, bands in found:
            yield _bands(bands, (min(ends), max(ends)), run, task, _of(run, runs))


def rows_of(run: Run, task: str, axis: str) -> list[Depth]:
    """The rows of profile.csv of a task by `axis`, "position" or "turn"."""
    return [row for row in run.profile if row.task == task and row.axis == axis]


def _of(run: Run, runs: Sequence[Run]) -> str:
    return f" · run {run.letter}" if len(runs) > 1 else ""


def _name(bucket: tuple[int, int]) -> str:
    return str(bucket[0]) if bucket[1] == bucket[0] + 1 else f"{bucket[0]}–{bucket[1] - 1}"


def _heat(rows: Sequence[Depth], run: Run, task: str, of: str, low: float) -> Chart:
    edges, buckets, cells = heat(rows, "student_mass", COLUMNS)
    figure, axis = canvas()
    image = axis.pcolormesh(
        edges, np.arange(len(buckets) + 1), cells, cmap=HEAT, vmin=low, vmax=1, edgecolors="face", linewidth=0.8
    )
    axis.set_yticks(np.arange(len(buckets)) + 0.5, [_name(b) for b in buckets])
    axis.set(xlabel="update", ylabel="position in the trajectory")
    axis.grid(visible=False)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    bar = figure.colorbar(image, ax=axis, fraction=0.05, pad=0.02, format=PercentFormatter(1))
    bar.outline.set_visible(False)
    caption = (
        "Student probability on the teacher's top-K, by token position (upwards) and update (to the right); "
        "healthy: pale everywhere, while dark top rows mean that the student leaves the teacher's support late in a "
        "trajectory."
    )
    return chart(f"coverage {task} {run.letter}", f"Coverage by depth · {task}{of}", caption, figure)


def _bands(bands: Sequence[Band], ends: tuple[float, float], run: Run, task: str, of: str) -> Chart:
    figure, axis = canvas()
    buckets = sorted({bucket for band in bands for bucket in band})
    for name, colour, band in zip(THIRDS, (MUTED, TEACHER, STUDENT), bands, strict=True):
        if band:
            at = [buckets.index(bucket) for bucket in band]
            low, middle, high = zip(*band.values(), strict=True)
            axis.fill_between(at, low, high, color=colour, alpha=0.16, lw=0)
            axis.plot(at, middle, color=colour, lw=2, marker="o", ms=3.5, label=name)
    margin = 0.05 * (ends[1] - ends[0]) or 0.1
    axis.set_ylim(min(ends[0], 0) - margin, max(ends[1], 0) + margin)
    axis.axhline(0, color=INK, lw=0.8)
    shown = range(0, len(buckets), 1 + len(buckets) // 6)
    axis.set_xticks(list(shown), [_name(buckets[i]) for i in shown])
    axis.set(xlabel="position in the trajectory", ylabel="log π(y) − log q(y), nats")
    axis.yaxis.set_major_locator(MaxNLocator(5))
    legend(axis, 3)
    caption = (
        "Gap of the sampled token by position: median (line) and 10–90 % of the tokens (band), means over a third "
        "of the run; healthy: the band shrinks to 0 from one third to the next and does not widen with depth."
    )
    return chart(f"gap {task} {run.letter}", f"Gap by position · {task}{of}", caption, figure)
