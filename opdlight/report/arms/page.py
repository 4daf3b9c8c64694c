"""Writes the page of arms, with its figures and tables beside it."""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib

from opdlight.metrics.intervals import Interval, Mean
from opdlight.report.arms.compare import ArmRow, Part, compare, once_a_seed
from opdlight.report.arms.early_signs import Sign, early_signs, signs_csv
from opdlight.report.arms.figures import CHOSEN, Numbers, draw_curves, draw_differences, draw_success
from opdlight.report.arms.group import arm_config
from opdlight.report.arms.outcomes import Ran, State
from opdlight.report.arms.read import tasks_of
from opdlight.report.arms.signs_chart import draw_signs
from opdlight.report.arms.tables import write_tables
from opdlight.report.arms.terminal import reached
from opdlight.report.draw import STYLE, Chart
from opdlight.report.html import fill
from opdlight.report.measures import joined_alarms
from opdlight.system.console import track
from opdlight.system.files import write_text

STATES: tuple[State, ...] = ("failed", "unfinished", "finished")  # in the order of the list of runs
CHANCE = 0.05  # of a 95 % interval to exclude 0 where nothing differs


def arms_page(runs: Sequence[Ran], file: Path, *, baseline: str | None, title: str) -> list[Part]:
    """Compare the arms, and write the page `file` with `figures/` and CSV files beside it.

    Args:
        runs: of every setting and arm, also those that failed.
        file: of the page.
        baseline: see `compare`.
        title: of the page.

    Returns:
        What was compared.

    Raises:
        ConfigError: if there is no such baseline.
    """
    parts = compare(runs, baseline)
    numbers = {arm: i for i, arm in enumerate(dict.fromkeys([*(p.baseline for p in parts), *(r.arm for r in runs)]))}
    figures = file.parent / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    charts: dict[str, list[Chart]] = {}
    signs = early_signs(once_a_seed(runs))
    with matplotlib.rc_context(STYLE):
        for section, chart in track(_charts(runs, parts, signs, numbers), "drawing", log=False):
            (figures / f"{chart.slug}.png").write_bytes(chart.png)
            charts.setdefault(section, []).append(chart)
    write_tables(file.parent, runs, parts)
    if signs:
        write_text(file.parent / "signs.csv", signs_csv(signs))
    write_text(file, _html(runs, parts, numbers, charts, title, file.parent))
    return parts


def _charts(
    runs: Sequence[Ran], parts: Sequence[Part], signs: Sequence[Sign], numbers: Numbers
) -> Iterator[tuple[str, Chart]]:
    """Each figure with the section that it belongs to."""
    for n, part in enumerate(parts):
        mine = [ran for ran in runs if ran.setting == part.setting]
        for chart in (*draw_success(part, mine, numbers), *draw_differences(part, numbers)):
            yield f"part-{n}", chart
    yield from (("signs", chart) for chart in draw_signs(signs))
    for n, setting in enumerate(dict.fromkeys(ran.setting for ran in runs)):
        mine = [ran for ran in runs if ran.setting == setting]
        for chart in draw_curves(setting, mine, tasks_of(mine), numbers):
            yield f"curves-{n}", chart


def _html(
    runs: Sequence[Ran],
    parts: Sequence[Part],
    numbers: Numbers,
    charts: dict[str, list[Chart]],
    title: str,
    beside: Path,
) -> str:
    settings = list(dict.fromkeys(ran.setting for ran in runs))
    shown = [
        {
            "slug": f"part-{n}",
            "title": _title(part, parts),
            "baseline": part.baseline,
            "rows": [{**_row(row, part), "number": numbers[row.arm]} for row in part.rows],
            "chance": list(_chance(part)),
            "teacher": _percent(part.rows[0].teacher),
            "charts": charts.get(f"part-{n}", []),
        }
        for n, part in enumerate(parts)
    ]
    curves = [
        {"slug": f"curves-{n}", "title": f"Curves · {setting}" if len(settings) > 1 else "Curves",
         "charts": charts[f"curves-{n}"]}
        for n, setting in enumerate(settings) if f"curves-{n}" in charts
    ]  # fmt: skip
    counted = {id(ran) for ran in once_a_seed(runs)}
    keys = sorted({alarm["key"] for ran in runs for alarm in ran.alarms})
    return fill(
        "arms.html",
        styles=("page.css", "arms.css"),
        scripts=("page.js", "arms.js"),
        title=title,
        tiles=list(_tiles(runs, numbers)),
        states=_states(runs),
        arms=[{"name": arm, "number": n} for arm, n in numbers.items()],
        chosen=CHOSEN,
        parts=shown,
        curves=curves,
        signs=charts.get("signs", []),
        several=len(settings) > 1,
        alarm_keys=keys,
        alarms=list(_alarms(runs, keys, numbers)),
        configs=list(_configs(runs, parts, numbers)),
        runs=[
            _run(ran, id(ran) in counted, numbers, beside) for ran in sorted(runs, key=lambda r: STATES.index(r.state))
        ],
    )


def _place(ran: Ran) -> int:
    return STATES.index(ran.state)


def _title(part: Part, parts: Sequence[Part]) -> str:
    same = sum(other.task == part.task for other in parts)
    return part.task if same == 1 else f"{part.task} · {part.setting}"


def _states(runs: Sequence[Ran]) -> str:
    """`120 finished, 3 failed, 2 unfinished`."""
    found = Counter(ran.state for ran in runs)
    return ", ".join(f"{found[state]:,} {state}" for state in reversed(STATES) if found[state])


def _tiles(runs: Sequence[Ran], numbers: Numbers) -> Iterator[tuple[str, str]]:
    found = Counter(ran.state for ran in runs)
    yield "arms", f"{len(numbers):,}"
    yield "seeds", f"{len({ran.seed for ran in runs}):,}"
    yield "runs", f"{len(runs):,}"
    for state in reversed(STATES):
        yield state, f"{found[state]:,}"
    tokens = [max(c.tokens[-1] for c in ran.held_out.values()) for ran in runs if ran.held_out]
    yield "tokens sampled", f"{sum(t for t in tokens if math.isfinite(t)):,.0f}"


def _row(row: ArmRow, part: Part) -> dict[str, Any]:
    n, base = row.seeds, row.arm == part.baseline
    seeds = [f"{n}", *(f"{count} {name}" for count, name in ((row.failed, "failed"), (row.unfinished, "unfinished"))
                       if count)]  # fmt: skip
    return {
        "arm": row.arm,
        "baseline": base,
        "after": _share(row.after),
        "difference": _interval(row.difference, 100, signed=True),
        "area": _share(row.area),
        "area_difference": _interval(row.area_difference, 100, signed=True),
        "spread": _interval(row.spread, 100),
        "drop": _mean(row.drop, 100, 1),
        "drop_difference": _interval(row.drop_difference, 100, signed=True),
        "half_gap": _mean(row.half_gap, 1e-3, 1) if row.half_gap else reached(row),
        "half_gap_difference": _interval(row.half_gap_difference, 1e-3, 1, signed=True),
        "snr": _mean(row.snr, 1, 2) if row.snr else "–",
        "snr_difference": _interval(row.snr_difference, 1, 2, signed=True),
        "teacher": "" if row.teacher == part.rows[0].teacher else _percent(row.teacher),
        "seeds": seeds,
        "pairs": "" if base or row.pairs == n else f"{row.pairs} paired",
    }


def _interval(found: Interval, scale: float, digits: int = 1, *, signed: bool = False) -> dict[str, Any] | None:
    """A figure, its interval as text, and of a difference whether it excludes 0; None without a figure."""
    if not math.isfinite(found.value):
        return None
    value, low, high = (_number(scale * x, digits, signed) for x in (found.value, found.low, found.high))
    known = math.isfinite(found.low)
    excludes = signed and known and not found.low <= 0 <= found.high
    return {"value": value, "interval": f"[{low}, {high}]" if known else "", "excludes": excludes}


def _share(found: Interval) -> dict[str, Any] | None:
    """In percent; a symmetric interval near 0 or 1 is cut there."""
    if math.isfinite(found.low):
        found = replace(found, low=max(0.0, found.low), high=min(1.0, found.high))
    return _interval(found, 100)


def _number(value: float, digits: int, signed: bool = False) -> str:
    return f"{round(value, digits) + 0.0:{'+' if signed else ''},.{digits}f}".replace("-", "−")  # + 0.0: never −0


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else ""


def _mean(found: Mean, scale: float, digits: int) -> str:
    return _number(scale * found.mean, digits) if math.isfinite(found.mean) else "–"


def _chance(part: Part) -> Iterator[str]:
    """How many intervals exclude 0, and how many would by chance."""
    for name, figure in (("at the end", lambda r: r.difference), ("over the run", lambda r: r.area_difference)):
        clear, count = part.by_chance(figure)
        if count:
            yield f"{name} {clear} of {count} intervals exclude 0, by chance alone about {CHANCE * count:.1f} would"


def _alarms(runs: Sequence[Ran], keys: Sequence[str], numbers: Numbers) -> Iterator[dict[str, Any]]:
    for setting, arm in dict.fromkeys((ran.setting, ran.arm) for ran in runs):
        mine = [ran for ran in runs if (ran.setting, ran.arm) == (setting, arm)]
        began = [joined_alarms(ran.alarms) for ran in mine]
        cells = []
        for key in keys:
            of_key = [sum(alarm["key"] == key for alarm in alarms) for alarms in began]
            with_it, times = sum(map(bool, of_key)), sum(of_key)
            cells.append(
                "" if not times else f"{with_it} of {len(mine)}" + (f" ({times} times)" if times > with_it else "")
            )
        if any(cells):
            yield {"setting": setting, "arm": arm, "number": numbers[arm], "cells": cells}


def _configs(runs: Sequence[Ran], parts: Sequence[Part], numbers: Numbers) -> Iterator[dict[str, Any]]:
    """For each arm the keys whose values differ from the baseline's, those that it adds, and those that it lacks."""
    for setting, baseline in dict.fromkeys((part.setting, part.baseline) for part in parts):
        mine = [ran for ran in runs if ran.setting == setting and ran.config]
        base = next((arm_config(ran) for ran in mine if ran.arm == baseline), {})
        for arm in dict.fromkeys(ran.arm for ran in mine if base):
            config = next(arm_config(ran) for ran in mine if ran.arm == arm)
            changes = [(key, base[key], value) for key, value in config.items() if base.get(key, value) != value]
            added = [(key, value) for key, value in config.items() if key not in base]
            removed = [key for key in base if key not in config]
            if arm != baseline:
                yield {"setting": setting, "arm": arm, "number": numbers[arm], "changes": changes,
                       "added": added, "removed": removed}  # fmt: skip


def _run(ran: Ran, counts: bool, numbers: Numbers, beside: Path) -> dict[str, Any]:
    ends = [f"{task} {100 * c.means[-1]:.1f} % after {c.steps[-1]} updates" for task, c in ran.held_out.items()]
    repeated = [] if counts else ["another run of this arm and seed counts instead"]
    path = "" if ran.folder is None else os.path.relpath(ran.folder, beside.resolve())
    return {
        "setting": ran.setting,
        "arm": ran.arm,
        "number": numbers[ran.arm],
        "seed": ran.seed,
        "state": ran.state,
        "ends": ends,
        "folder": path,
        "link": quote(path),
        "report": ran.folder is not None and (ran.folder / "report" / "index.html").is_file(),
        "notes": [*repeated, *ran.notes],
    }
