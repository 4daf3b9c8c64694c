"""The table of arms for the terminal."""

import math

from opdlight.metrics.intervals import Interval
from opdlight.report.arms.compare import ArmRow, Part
from opdlight.system import console


def arms_table(part: Part) -> console.Table:
    """The arms of one setting and task."""
    made = console.table("arm", "success", f"over {part.baseline}", "over the run", "largest fall",
                         "tokens to half the gap", "gradient SNR", "seeds")  # fmt: skip
    made.title = f"{part.setting}: {part.task}, 95 % intervals over seeds and episodes, differences at equal tokens"
    for row in part.rows:
        seeds = f"{row.seeds}" + "".join(
            f" ({count} {name})" for count, name in ((row.failed, "failed"), (row.unfinished, "unfinished")) if count
        )
        gap = str(row.half_gap) if row.half_gap else reached(row) or "–"
        made.add_row(row.arm, percent(row.after), points(row.difference), percent(row.area),
                     f"{100 * row.drop.mean:.1f}", gap, str(row.snr) if row.snr else "–", seeds)  # fmt: skip
    return made


def reached(row: ArmRow) -> str:
    """How many runs have got half of the way to their teacher; empty where there is no way to go."""
    return "" if row.reached is None else f"{row.reached} of {row.seeds} reach it"


def percent(interval: Interval) -> str:
    """In percent, with the interval where there is one."""
    if not math.isfinite(interval.value):
        return "–"
    return interval.percent() if math.isfinite(interval.low) else f"{100 * interval.value:.1f} %"


def points(interval: Interval) -> str:
    """A difference in percentage points with its sign; – for the baseline itself."""
    if not math.isfinite(interval.value):
        return "–"
    value = f"{100 * interval.value:+.1f}"
    return (
        value if not math.isfinite(interval.low) else f"{value} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
    )
