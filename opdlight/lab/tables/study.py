"""The study: plan the runs, do those that are missing, compare, draw, write."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from opdlight.config.folders import make_folder
from opdlight.errors import ConfigError, UnfinishedError
from opdlight.lab.tables.compare import ArmRow, compare
from opdlight.lab.tables.outcomes import Ran, read
from opdlight.lab.tables.page import write_page
from opdlight.lab.tables.runs import Planned, slug, train_all
from opdlight.metrics.intervals import Interval, Mean
from opdlight.system import console
from opdlight.system.console import say, show
from opdlight.system.files import write_text
from opdlight.system.quiet import quiet_libraries

PLAIN = ("doctor=false", "callbacks.checkpoints.keep=1")  # of every run of the study


def tables(cfg: DictConfig) -> dict[str, float]:
    """Do the study of a composed config, or what is missing of it; returns success by setting, task and arm."""
    quiet_libraries()
    folder = make_folder(cfg.run_dir)
    planned = plan(cfg, folder)
    for run in planned:
        run.check()
    write_text(folder / "tables.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    failed = train_all(planned, jobs=cfg.jobs)
    runs = [read(run) for run in planned]
    rows = table_rows(runs, baseline=cfg.baseline)
    write_text(folder / "runs.csv", runs_csv(runs))
    write_text(folder / "arms.csv", arms_csv(rows))
    write_page(folder, runs, rows, baseline=cfg.baseline)
    for part in {(row.setting, row.task): None for row in rows}:
        show(table([row for row in rows if (row.setting, row.task) == part], baseline=cfg.baseline))
    say(f"page: {folder / 'index.html'}")
    if failed:
        raise UnfinishedError(f"{len(failed)} of {len(planned)} runs failed; the same command tries them again.")
    return {f"{row.setting}/{row.task}/{row.arm}": row.after.value for row in rows}


def plan(cfg: DictConfig, folder: Path) -> list[Planned]:
    """Every run of the study: seed by seed, so that a study that is stopped early has whole seeds.

    Raises:
        ConfigError: for an arm that is not defined, or without the baseline.
    """
    found = []
    for setting, node in cfg.settings.items():
        arms = list(node.arms if node.arms is not None else cfg.arms)
        if unknown := [arm for arm in arms if arm not in cfg.arms]:
            expected = f"names out of `arms` ({', '.join(map(str, cfg.arms))})"
            raise ConfigError.wrong(f"settings.{setting}.arms", expected=expected, got=unknown[0])
        if cfg.only is not None:
            if unknown := [arm for arm in cfg.only if arm not in cfg.arms]:
                expected = f"names out of `arms` ({', '.join(map(str, cfg.arms))})"
                raise ConfigError.wrong("only", expected=expected, got=unknown[0])
            arms = [arm for arm in arms if arm in (*cfg.only, cfg.baseline)]
        if cfg.baseline not in arms:
            raise ConfigError.wrong("baseline", expected=f"one of the arms of every setting ({arms})", got=cfg.baseline)
        for seed in cfg.seeds:
            for arm in arms:
                teachers = arm == cfg.baseline and seed == cfg.seeds[0]  # one run of a setting measures them
                last = (f"seed={seed}", f"evaluate_teachers={str(teachers).lower()}")
                found.append(
                    Planned(
                        setting=str(setting),
                        arm=str(arm),
                        seed=seed,
                        folder=folder / slug(str(setting)) / slug(str(arm)) / f"seed-{seed}",
                        overrides=(*node.overrides, *PLAIN, *cfg.arms[arm], *last),
                        teachers=teachers,
                    )
                )
    return found


def table_rows(runs: Sequence[Ran], *, baseline: str) -> list[ArmRow]:
    """The rows of every setting and task."""
    found = []
    for setting in dict.fromkeys(ran.run.setting for ran in runs):
        mine = [ran for ran in runs if ran.run.setting == setting]
        teachers = {task: success for ran in mine for task, success in ran.teachers.items()}
        for task in dict.fromkeys(task for ran in mine for task in ran.curves):
            found += compare(mine, setting=setting, task=task, baseline=baseline, teacher=teachers.get(task))
    return found


def runs_csv(runs: Sequence[Ran]) -> str:
    """One line a run and task, those that failed included."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["setting", "arm", "seed", "task", "failed", "steps", "sampled_tokens", "before", "after", "area",
                  "largest_drop", "gradient_snr"])  # fmt: skip
    for ran in runs:
        key = [ran.run.setting, ran.run.arm, ran.run.seed]
        if not ran.curves:
            out.writerow([*key, "", int(ran.failed), 0, *[""] * 6])
        for task, c in ran.curves.items():
            figures = [c.means[0], c.means[-1], float(c.area.mean()), c.largest_drop, ran.snr]
            numbers = [f"{v:.6g}" if math.isfinite(v) else "" for v in figures]
            out.writerow([*key, task, int(ran.failed), c.steps[-1], int(c.tokens[-1]), *numbers])
    return text.getvalue()


def arms_csv(rows: Sequence[ArmRow]) -> str:
    """One line an arm and task; an interval takes three columns, a mean two."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    lines = [dict(_columns(row)) for row in rows]
    out.writerow(list(lines[0]) if lines else [])
    out.writerows([list(line.values()) for line in lines])
    return text.getvalue()


def _columns(row: ArmRow) -> list[tuple[str, str]]:
    found = []
    for name in (f.name for f in fields(row)):
        value: Any = getattr(row, name)
        if isinstance(value, Interval):
            found += [(f"{name}{end}", _cell(v)) for end, v in
                      (("", value.value), ("_low", value.low), ("_high", value.high))]  # fmt: skip
        elif isinstance(value, Mean) or name in ("half_gap", "snr"):
            found += [(name, _cell(value and value.mean)), (f"{name}_half", _cell(value and value.half))]
        else:
            found.append((name, _cell(value)))
    return found


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[ArmRow], *, baseline: str) -> console.Table:
    """The table of one setting and task for the terminal."""
    made = console.table("arm", "success", f"over {baseline}", "over the run", "largest fall", "tokens to half the gap",
                         "gradient SNR", "seeds")  # fmt: skip
    made.title = f"{rows[0].setting}: {rows[0].task}, 95 % intervals over seeds and episodes"
    for row in rows:
        seeds = f"{row.seeds}" + (f" ({row.failed} failed)" if row.failed else "")
        gap = str(row.half_gap) if row.half_gap else f"{row.reached} of {row.seeds} reach it"
        made.add_row(row.arm, percent(row.after), points(row.difference), percent(row.area),
                     f"{100 * row.drop.mean:.1f}", gap, str(row.snr) if row.snr else "–", seeds)  # fmt: skip
    return made


def percent(interval: Interval) -> str:
    """In percent, with the interval where there is one."""
    return interval.percent() if math.isfinite(interval.low) else f"{100 * interval.value:.1f} %"


def points(interval: Interval) -> str:
    """A difference in percentage points with its sign; – for the baseline itself."""
    if not math.isfinite(interval.value):
        return "–"
    value = f"{100 * interval.value:+.1f}"
    return (
        value if not math.isfinite(interval.low) else f"{value} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
    )
