"""The figure of held-out success: the student before and after, and the teacher."""

from collections.abc import Iterator, Sequence

from matplotlib.ticker import PercentFormatter

from opdlight.report.draw import INK, MUTED, RUNS, TEACHER, Chart, canvas, chart
from opdlight.report.read import Run
from opdlight.report.text import shortened


def draw_outcome(runs: Sequence[Run]) -> Iterator[Chart]:
    """One chart with all tasks of all finished runs."""
    rows = [(i, run, t, result) for i, run in enumerate(runs) for t, result in run.summary.get("tasks", {}).items()]
    rows.sort(key=lambda row: (row[2], row[0]))
    if not rows:
        return
    figure, axis = canvas(4.4, 0.8 + 0.34 * len(rows))
    measured = [y for y, row in enumerate(rows) if row[3]["teacher"]]
    for y, (i, _, _, result) in enumerate(rows):
        before, after, teacher = result["before"], result["after"], result["teacher"]
        colour = RUNS[i % len(RUNS)]
        if teacher:
            axis.plot([teacher["low"], teacher["high"]], [y, y], color=TEACHER, lw=10, alpha=0.2, solid_capstyle="butt")
            axis.plot(
                [teacher["success"]], [y], "D", color=TEACHER, ms=6, label="teacher" if y == measured[0] else None
            )
        shift = 0.0 if before["high"] < after["low"] else 0.13
        for result_at, at, face in ((before, y - shift, "#fefefe"), (after, y + shift, colour)):
            axis.plot([result_at["low"], result_at["high"]], [at, at], color=colour, lw=2.4, alpha=0.75)
            axis.plot([result_at["success"]], [at], "o", ms=7.5, color=colour, mfc=face, mew=1.6, zorder=5)
        axis.plot([before["success"], after["success"]], [y - shift, y + shift], color=colour, lw=1, alpha=0.45)
    axis.plot([], [], "o", color=INK, mfc="#fefefe", mew=1.6, label="before")
    axis.plot([], [], "o", color=INK, label="after")
    names = [shortened(task) + (f" · {run.letter}" if len(runs) > 1 else "") for _, run, task, _ in rows]
    axis.set_yticks(range(len(rows)), names, color=INK)
    axis.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5))
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.grid(visible=False, axis="y")
    axis.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, borderaxespad=0.2, labelcolor=MUTED, handletextpad=0.3
    )
    caption = (
        "Success on held-out episodes before (hollow) and after (filled) with 95 % intervals, and the teacher's "
        "(diamond and its interval as a bar); healthy: the filled "
        "dot's interval is clear of the hollow dot and nears the diamond."
    )
    yield chart("outcome", "Held-out success", caption, figure, wide=True)
