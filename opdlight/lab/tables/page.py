"""The figures of the study and the page that shows them."""

import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from opdlight.lab.tables.compare import ArmRow
from opdlight.lab.tables.outcomes import Ran
from opdlight.report.draw import COLOURS, MUTED, STUDENT, STYLE, canvas
from opdlight.system.files import replacing, write_text

HERE = Path(__file__).parent


def write_page(folder: Path, runs: Sequence[Ran], rows: Sequence[ArmRow], *, baseline: str) -> None:
    """Write `index.html` with `figures/*.png` beside it."""
    parts = []
    (folder / "figures").mkdir(exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for number, (setting, task) in enumerate({(row.setting, row.task): None for row in rows}):
            mine = [row for row in rows if (row.setting, row.task) == (setting, task)]
            figures = [f"figures/{number + 1}-differences.png", f"figures/{number + 1}-curves.png"]
            draw_differences(mine, folder / figures[0], baseline=baseline)
            draw_curves([r for r in runs if r.run.setting == setting], task, folder / figures[1])
            parts.append({"setting": setting, "task": task, "rows": mine, "figures": figures})
    template = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, autoescape=True)
    failed = [ran.run.name for ran in runs if ran.failed]
    html = template.get_template("page.html").render(
        parts=parts, baseline=baseline, failed=failed, runs=len(runs), isfinite=math.isfinite
    )
    write_text(folder / "index.html", html)


def draw_differences(rows: Sequence[ArmRow], path: Path, *, baseline: str) -> None:
    """Differences to the baseline with their intervals, an arm a line."""
    compared = [row for row in rows if math.isfinite(row.difference.value)]
    figure, axis = canvas(7.0, 0.9 + 0.27 * max(1, len(compared)))
    axis.axvline(0, color=MUTED, lw=1)
    for place, row in enumerate(compared):
        d = row.difference
        axis.plot(100 * d.value, place, "o", color=STUDENT, ms=4)
        if math.isfinite(d.low):
            axis.plot([100 * d.low, 100 * d.high], [place, place], color=STUDENT, lw=1.6)
    axis.set_yticks(range(len(compared)), [row.arm for row in compared])
    axis.invert_yaxis()
    axis.set_xlabel(f"success at the end minus that of {baseline} (percentage points, 95 %)")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=160, format="png", facecolor="white")


def draw_curves(runs: Sequence[Ran], task: str, path: Path) -> None:
    """Held-out success by sampled tokens: the mean over seeds of each arm, and the range over seeds as a band."""
    figure, axis = canvas(7.0, 4.2)
    arms = list(dict.fromkeys(ran.run.arm for ran in runs if task in ran.curves))
    for number, (arm, colour) in enumerate(zip(arms, cycle(COLOURS), strict=False)):
        curves = [ran.curves[task] for ran in runs if ran.run.arm == arm and task in ran.curves]
        shortest = min(len(c.steps) for c in curves)
        tokens = np.mean([c.tokens[:shortest] for c in curves], axis=0)
        means = 100 * np.array([c.means[:shortest] for c in curves])
        style = ("-", "--", ":", "-.")[number // len(COLOURS) % 4]
        axis.plot(tokens, means.mean(0), style, color=colour, lw=1.6, label=arm)
        axis.fill_between(tokens, means.min(0), means.max(0), color=colour, alpha=0.1, lw=0)
    axis.set(xlabel="tokens that the student has sampled", ylabel=f"held-out success on {task} (%)")
    figure.legend(loc="outside right center", fontsize=7)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=160, format="png", facecolor="white")
