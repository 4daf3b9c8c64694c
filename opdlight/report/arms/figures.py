"""The figures of the page of arms: differences to the baseline, and curves with a band over the seeds of each arm.

The page colours only the arms that are chosen there; a PNG has those that it begins with.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from opdlight.metrics.intervals import Interval
from opdlight.report.arms.bands import Band, band_of
from opdlight.report.arms.compare import ArmRow, Part, once_a_seed
from opdlight.report.arms.outcomes import Ran
from opdlight.report.curves import CURVES, over_updates, panels, set_scale
from opdlight.report.draw import INK, MUTED, RUNS, STUDENT, Chart, arm_id, canvas, chart, legend
from opdlight.report.measures import points_of, smooth
from opdlight.report.text import shortened

CHOSEN = len(RUNS)  # arms with a colour at the same time, on the page too
LONGEST = 46  # characters of an arm's name in a figure
DIFFERENCES: tuple[tuple[str, str, Callable[[ArmRow], Interval], float, str], ...] = (
    ("Success at the end", "percentage points", lambda row: row.difference, 100, "above 0: the arm ends better"),
    ("Success over the run", "percentage points", lambda row: row.area_difference, 100,
     "above 0: the arm is better on the way"),
    ("Largest fall of success", "percentage points", lambda row: row.drop_difference, 100,
     "above 0: the arm is less stable"),
    ("Tokens to half of the gap", "tokens", lambda row: row.half_gap_difference, 1, "above 0: the arm is slower"),
    ("Gradient SNR", "", lambda row: row.snr_difference, 1, "above 0: the arm has less noise"),
)  # fmt: skip
PLATE = {"facecolor": "#fefefe", "edgecolor": "none", "pad": 1, "alpha": 0.8}  # below a name, over the lines
Numbers = Mapping[str, int]  # arm → its number on the page, from 0


def draw_differences(part: Part, numbers: Numbers) -> Iterator[Chart]:
    """A figure for each kind of difference, with a line for each arm."""
    for title, unit, figure_of, scale, meaning in DIFFERENCES:
        rows = [row for row in part.rows if math.isfinite(figure_of(row).value)]
        if not rows:
            continue
        figure, axis = canvas(3.8, 0.75 + 0.33 * len(rows))
        axis.axvline(0, color=MUTED, lw=1)
        bound = furthest([figure_of(row) for row in rows])
        for place, row in enumerate(rows):
            found = figure_of(row)
            colour = STUDENT if math.isfinite(found.low) and not found.low <= 0 <= found.high else MUTED
            name = f"{numbers[row.arm] + 1}  {shortened(row.arm, LONGEST)}"
            if abs(found.value) > bound:
                name += f": {_signed(float(f'{scale * found.value:.3g}'), 0)}"
            else:
                axis.plot(scale * found.value, place, "o", color=colour, ms=5)
            if math.isfinite(found.low):
                ends = np.clip([found.low, found.high], -bound, bound)
                axis.plot(scale * ends, [place, place], color=colour, lw=2)
            for sign, mark in ((-1, "<"), (1, ">")):
                if max(sign * x for x in (found.value, found.low, found.high) if math.isfinite(x)) > bound:
                    axis.plot(scale * sign * bound, place, mark, color=colour, ms=6)
            axis.text(0.0, place - 0.3, name, transform=axis.get_yaxis_transform(), fontsize=8, color=INK, bbox=PLATE)
        axis.set_ylim(len(rows) - 0.55, -0.75)
        axis.set_yticks([])
        axis.set_xlabel(unit)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.xaxis.set_major_formatter(FuncFormatter(_signed))
        caption = (
            f"Difference to {part.baseline}, paired by seed, with 95 % intervals (coloured: the interval excludes 0"
            f"{'; an arrow: it goes on' if math.isfinite(bound) else ''}); {meaning}."
        )
        yield chart(f"{part.setting} {part.task} {title}", f"{title} · {part.task}", caption, figure)


def furthest(found: Sequence[Interval]) -> float:
    """Up to where intervals are drawn: a lone arm that lies far out would flatten all others. Infinite without one."""
    sizes = [max(abs(x) for x in (d.value, d.low, d.high) if math.isfinite(x)) for d in found]
    bound = 2.5 * float(np.quantile(sizes, 0.8))
    return bound if 0 < bound < max(sizes) else math.inf


def draw_success(part: Part, runs: Sequence[Ran], numbers: Numbers) -> Iterator[Chart]:
    """Held-out success over the sampled tokens."""
    lines: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for ran in once_a_seed(runs):
        if ran.counts(part.task) and all(map(math.isfinite, ran.held_out[part.task].tokens)):
            held_out = ran.held_out[part.task]
            lines.setdefault(ran.arm, []).append((np.array(held_out.tokens), np.array(held_out.means)))
    if not lines:
        return
    figure, axis = canvas(5.6, 3.6)
    _bands(axis, {arm: band_of(of_arm) for arm, of_arm in lines.items()}, numbers)
    axis.set_xlabel("tokens that the student has sampled")
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axis.margins(x=0.01)
    caption = f"Held-out success on {part.task} by sampled tokens: mean over seeds (line; {DOTTED}) and {RANGE}."
    title = f"Held-out success · {part.task}"
    yield chart(
        f"{part.setting} {part.task} success", title, caption, figure, wide=True, key=partial(legend, axis, CHOSEN)
    )


DOTTED = "dotted where only some have come that far"
RANGE = "the lowest to the highest seed (band)"


def draw_curves(setting: str, runs: Sequence[Ran], tasks: Sequence[str], numbers: Numbers) -> Iterator[Chart]:
    """A chart for each panel of `CURVES` for which a run has values."""
    runs = [ran for ran in once_a_seed(runs) if ran.curves]
    for curve in CURVES:
        for task in panels(curve, [ran.curves for ran in runs], tasks):
            key, of_task = curve.key.format(task=task), "" if "{task}" in curve.key else task
            lines: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
            for ran in runs:
                if points := points_of(ran.curves, key, of_task):
                    steps, values = points
                    lines.setdefault(ran.arm, []).append((steps, smooth(values, max(1, len(values) // 12))))
            if not lines or (curve.agents and max(v.max() for of_arm in lines.values() for _, v in of_arm) <= 1):
                continue
            figure, axis = canvas()
            _bands(axis, {arm: band_of(of_arm) for arm, of_arm in lines.items()}, numbers)
            set_scale(axis, curve)
            over_updates(axis, curve.unit)
            healthy = curve.caption.rpartition("healthy")[2].removesuffix(".")
            caption = f"Running mean over seeds (line; {DOTTED}) and {RANGE}; healthy{healthy}."
            title = curve.title.format(task=task) + (f" · {of_task}" if of_task else "")
            slug = f"{setting} curve {key} {of_task}"
            yield chart(slug, title, caption, figure, key=partial(legend, axis, CHOSEN))


def _bands(axis: Axes, bands: Mapping[str, Band], numbers: Numbers) -> None:
    """A line and a band for each arm, those with a colour above the others."""
    for arm, band in sorted(bands.items(), key=lambda item: -numbers[item[0]]):
        number, n = numbers[arm], band.whole
        chosen = number < CHOSEN
        style: dict[str, Any] = (
            {"color": RUNS[number], "lw": 2, "alpha": 1.0} if chosen else {"color": MUTED, "lw": 0.8, "alpha": 0.45}
        )
        if band.low.tolist() != band.high.tolist():
            shade = axis.fill_between(band.at, band.low, band.high, lw=0, color=style["color"])
            shade.set_alpha(0.12 if chosen else 0.0)
            shade.set_gid(arm_id(number, "band"))
        mark = "." if len(band.at) == 1 else ""
        label = str(number + 1) if chosen else None
        axis.plot(band.at[:n], band.mean[:n], mark + "-", label=label, gid=arm_id(number, "line"), **style)
        if n < len(band.at):
            axis.plot(band.at[max(0, n - 1) :], band.mean[max(0, n - 1) :], ":", gid=arm_id(number, "line"), **style)


def _signed(value: float, _: int) -> str:
    return "0" if value == 0 else f"{value:+,g}".replace("-", "−")
