"""Figures by depth: coverage by position and update, the gap by position, figures by turn."""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

from opdlight.metrics import wilson_interval
from opdlight.report.draw import HEAT, INK, MUTED, RUNS, STUDENT, TEACHER, Chart, canvas, chart, legend
from opdlight.report.measures import PARTS, by_bucket, heat, part_of, success_by_turns
from opdlight.report.read import Depth, Run

COLUMNS = 60  # of a heat map; more updates than that share cells


def draw_depth(runs: Sequence[Run], tasks: Sequence[str]) -> Iterator[Chart]:
    """Heat maps of all runs and tasks on one scale, then the bands."""
    for task in tasks:
        for run in runs:
            if rows := _rows(run, task, "position"):
                yield _heat(rows, run, task, _of(run, runs))
    for task in tasks:
        for run in runs:
            if rows := _rows(run, task, "position"):
                yield _bands(rows, run, task, _of(run, runs))


def draw_turns(runs: Sequence[Run], tasks: Sequence[str]) -> Iterator[Chart]:
    """Success, gap and coverage by turn, for tasks of more than one turn."""
    for task in tasks:
        rows = {run.letter: _rows(run, task, "turn") for run in runs}
        if any(row.start > 0 for found in rows.values() for row in found):
            yield _by_turn(rows, runs, task, "abs_gap", "Gap by turn", "mean |log q − log π|, nats", GAP_BY_TURN)
            yield _by_turn(rows, runs, task, "student_mass", "Coverage by turn", "", COVERAGE_BY_TURN)
        counts = {r.letter: success_by_turns(t for t in r.trajectories if t["task"] == task) for r in runs}
        if any(turns > 1 for found in counts.values() for turns in found):
            yield _success(counts, runs, task)


def _rows(run: Run, task: str, axis: str) -> list[Depth]:
    return [row for row in run.profile if row.task == task and row.axis == axis]


def _of(run: Run, runs: Sequence[Run]) -> str:
    return f" · run {run.letter}" if len(runs) > 1 else ""


def _name(bucket: tuple[int, int]) -> str:
    return str(bucket[0]) if bucket[1] == bucket[0] + 1 else f"{bucket[0]}–{bucket[1] - 1}"


def _heat(rows: Sequence[Depth], run: Run, task: str, of: str) -> Chart:
    edges, buckets, cells = heat(rows, "student_mass", COLUMNS)
    figure, axis = canvas()
    low = 0.5 if np.nanmin(np.nan_to_num(cells, nan=1.0)) >= 0.5 else 0.0
    image = axis.pcolormesh(
        edges, np.arange(len(buckets) + 1), cells, cmap=HEAT, vmin=low, vmax=1, edgecolors="face", linewidth=0.3
    )
    axis.set_yticks(np.arange(len(buckets)) + 0.5, [_name(b) for b in buckets])
    axis.set(xlabel="update", ylabel="position in the trajectory")
    axis.grid(visible=False)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    bar = figure.colorbar(image, ax=axis, fraction=0.05, pad=0.02, format=PercentFormatter(1))
    bar.outline.set_visible(False)  # type: ignore[operator]
    caption = (
        "Student probability on the teacher's top-K, by token position (upwards) and update (to the right); "
        "healthy: pale everywhere, while dark top rows mean that the student leaves the teacher's support late in a "
        "trajectory."
    )
    return chart(f"coverage {task} {run.letter}", f"Coverage by depth · {task}{of}", caption, figure)


def _bands(rows: Sequence[Depth], run: Run, task: str, of: str) -> Chart:
    first, last = min(r.update for r in rows), max(r.update for r in rows)
    figure, axis = canvas()
    buckets = sorted({(r.start, r.end) for r in rows})
    for part, (name, colour) in enumerate(zip(PARTS, (MUTED, TEACHER, STUDENT), strict=True)):
        mine = [r for r in rows if part_of(r.update, first, last) == part]
        low, middle, high = (by_bucket(mine, f"gap_q{q}") for q in (10, 50, 90))
        at = [i for i, b in enumerate(buckets) if b in low and b in middle and b in high]
        if not at:
            continue
        q10, q50, q90 = ([found[buckets[i]] for i in at] for found in (low, middle, high))
        axis.fill_between(at, q10, q90, color=colour, alpha=0.16, lw=0)
        axis.plot(at, q50, color=colour, lw=2, marker="o", ms=3.5, label=name)
    axis.axhline(0, color=INK, lw=0.8)
    shown = range(0, len(buckets), 1 + len(buckets) // 7)
    axis.set_xticks(list(shown), [_name(buckets[i]) for i in shown])
    axis.set(xlabel="position in the trajectory", ylabel="log π(y) − log q(y), nats")
    axis.yaxis.set_major_locator(MaxNLocator(5))
    legend(axis, 3)
    caption = (
        "Gap of the sampled token by position: median (line) and 10–90 % of the tokens (band), means over each third of "
        "the run; healthy: the band shrinks to 0 from one third to the next and does not widen with depth."
    )
    return chart(f"gap {task} {run.letter}", f"Gap by position · {task}{of}", caption, figure)


GAP_BY_TURN = (
    "Mean |log q − log π| of the tokens of each turn, first third of the run (dotted) and last (solid); "
    "healthy: the solid line is lower, and does not climb in late turns."
)
COVERAGE_BY_TURN = (
    "Student probability on the teacher's top-K by turn, first third of the run (dotted) and last (solid); "
    "healthy: the solid line stays over 90 % to the last turn."
)


def _by_turn(
    rows: dict[str, list[Depth]], runs: Sequence[Run], task: str, key: str, title: str, unit: str, caption: str
) -> Chart:
    figure, axis = canvas()
    for i, run in enumerate(runs):
        mine = rows[run.letter]
        for part, style in ((0, (0, (1, 1.4))), (2, "-")):
            first, last = min((r.update for r in mine), default=0), max((r.update for r in mine), default=0)
            means = by_bucket((r for r in mine if part_of(r.update, first, last) == part), key)
            label = (run.letter if len(runs) > 1 else PARTS[part]) if part == 2 or len(runs) == 1 else None
            turns = [start + 1 for start, _ in means]
            axis.plot(turns, list(means.values()), ls=style, lw=2, color=RUNS[i % len(RUNS)], label=label)
    if not unit:
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axis.set(xlabel="turn", ylabel=unit)
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    legend(axis)
    return chart(f"turn {key} {task}", f"{title} · {task}", caption, figure)


def _success(counts: dict[str, dict[int, tuple[int, int]]], runs: Sequence[Run], task: str) -> Chart:
    figure, axis = canvas()
    width = 0.8 / len(runs)
    for i, run in enumerate(runs):
        for turns, (won, n) in counts[run.letter].items():
            x = turns + (i - (len(runs) - 1) / 2) * width
            low, high = wilson_interval(won, n)
            axis.bar(x, won / n, width * 0.86, color=RUNS[i % len(RUNS)], alpha=0.75)
            axis.plot([x, x], [low, high], color=INK, lw=1)
            if len(runs) == 1:
                axis.text(x, -0.045, f"{n}", ha="center", va="top", fontsize=7, color=MUTED)
        if len(runs) > 1:
            axis.bar([], [], color=RUNS[i % len(RUNS)], label=run.letter)
    axis.set_ylim(-0.12 if len(runs) == 1 else 0, 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.set(xlabel="turns of the trajectory" + (" (small: how many trajectories)" if len(runs) == 1 else ""))
    axis.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    legend(axis)
    caption = (
        "Share of the recorded trajectories that succeeded, by their number of turns, with 95 % intervals; "
        "healthy: no cliff at a number of turns below the limit."
    )
    return chart(f"success by turns {task}", f"Success by number of turns · {task}", caption, figure)
