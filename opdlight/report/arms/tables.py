"""The tables of a comparison as CSV, and the runs read back from them.

`runs.csv` and `episodes.csv` hold all that `arms.csv` is made of: it can be made again without the folders of the runs.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from opdlight.errors import ConfigError
from opdlight.metrics.intervals import Interval, Mean
from opdlight.report.arms.compare import ArmRow, Part, once_a_seed
from opdlight.report.arms.outcomes import Ran
from opdlight.report.arms.read import Evaluations, held_out
from opdlight.report.rows import csv_rows, to_float
from opdlight.report.text import visible
from opdlight.system.files import write_text

RUNS, EPISODES, ARMS = "runs.csv", "episodes.csv", "arms.csv"


def write_tables(folder: Path, runs: Sequence[Ran], parts: Sequence[Part]) -> None:
    """Write the three files."""
    write_text(folder / RUNS, runs_csv(runs))
    write_text(folder / EPISODES, episodes_csv(runs))
    write_text(folder / ARMS, arms_csv([row for part in parts for row in part.rows]))


def runs_csv(runs: Sequence[Ran]) -> str:
    """One line a run and task, those that failed and those that still run included."""
    head = ["setting", "arm", "seed", "task", "failed", "unfinished", "steps", "sampled_tokens", "before", "after",
            "area", "largest_drop", "gradient_snr", "teacher"]  # fmt: skip
    lines = []
    for ran in runs:
        key = [ran.setting, ran.arm, ran.seed]
        state = [int(ran.state == name) for name in ("failed", "unfinished")]
        if not ran.held_out:
            lines.append([*key, "", *state, 0, *[""] * 5, _exact(ran.snr), ""])
        for task, c in ran.held_out.items():
            figures = [c.tokens[-1], c.means[0], c.means[-1], float(c.area.mean()), c.largest_drop]
            measured = [_exact(ran.snr), _exact(ran.teachers.get(task, math.nan))]
            lines.append([*key, task, *state, c.steps[-1], *map(_cell, figures), *measured])
    return _csv(head, lines)


def episodes_csv(runs: Sequence[Ran]) -> str:
    """One line an evaluation with the success of every held-out episode.

    Success is a string of 0 and 1, or numbers with blanks between them where an episode has several samples; `episodes`
    are the seeds of the episodes in this order, `first+count` of those that follow one another.
    """
    head = ["setting", "arm", "seed", "task", "step", "sampled_tokens", "episodes", "success"]
    lines = []
    for ran in once_a_seed(runs):
        for task, c in ran.held_out.items():
            for step, tokens, success in zip(c.steps, c.tokens, c.success.tolist(), strict=True):
                whole = all(value in (0, 1) for value in success)
                text = "".join(f"{v:.0f}" for v in success) if whole else " ".join(f"{v:.10g}" for v in success)
                key = [ran.setting, ran.arm, ran.seed, task, step, _cell(tokens)]
                lines.append([*key, _ranges(c.episodes), text])
    return _csv(head, lines)


def arms_csv(rows: Sequence[ArmRow]) -> str:
    """One line an arm and task; an interval takes three columns, a mean two."""
    lines = [dict(_columns(row)) for row in rows]
    return _csv(list(lines[0]) if lines else [], [list(line.values()) for line in lines])


def has_tables(folder: Path) -> bool:
    """Whether `read_tables` finds its files there."""
    return (folder / RUNS).is_file() and (folder / EPISODES).is_file()


def read_tables(folder: Path) -> list[Ran]:
    """The runs of a comparison from its `runs.csv` and `episodes.csv`, without curves, alarms and configuration.

    Raises:
        ConfigError: if the files are not those that a comparison writes.
    """
    notes: list[str] = []
    evaluated: dict[tuple[str, ...], list[dict[str, str]]] = {}
    found: dict[tuple[str, ...], list[dict[str, str]]] = {}
    try:
        for name, rows in ((EPISODES, evaluated), (RUNS, found)):
            for row in csv_rows(folder / name, notes):
                rows.setdefault((row["setting"], row["arm"], row["seed"]), []).append(row)
        return [_ran(lines, evaluated.get(key, [])) for key, lines in found.items()]
    except (KeyError, ValueError) as error:
        expected = f"a folder with {RUNS} and {EPISODES} as a comparison of arms writes them"
        raise ConfigError.wrong("run", expected=expected, got=str(folder)) from error


def _ran(rows: Sequence[Mapping[str, str]], evaluated: Sequence[Mapping[str, str]]) -> Ran:
    """A run from its lines in runs.csv and in episodes.csv."""
    evaluations: Evaluations = {}
    for line in evaluated:
        episodes, text = _episodes(line["episodes"]), line["success"]
        success = map(float, text if len(text) == len(episodes) else text.split())
        by_step = evaluations.setdefault(visible(line["task"]), {})
        by_step[int(line["step"])] = dict(zip(episodes, success, strict=True))
    tokens = {int(line["step"]): to_float(line["sampled_tokens"]) for line in evaluated}
    first = rows[0]
    return Ran(
        setting=visible(first["setting"]),
        arm=visible(first["arm"]),
        seed=int(first["seed"]),
        folder=None,
        state="failed" if first["failed"] == "1" else "unfinished" if first["unfinished"] == "1" else "finished",
        held_out=held_out(evaluations, tokens.get),
        snr=to_float(first["gradient_snr"]),
        teachers={visible(row["task"]): to_float(row["teacher"]) for row in rows if row["teacher"]},
        config={},
        curves={},
        alarms=[],
        notes=[],
    )


def _ranges(seeds: Sequence[int]) -> str:
    """Ascending numbers as `first+count`: [3, 4, 5, 9] is `3+3 9+1`."""
    every = set(seeds)
    starts = [seed for seed in seeds if seed - 1 not in every]
    ends = [seed for seed in seeds if seed + 1 not in every]
    return " ".join(f"{start}+{end - start + 1}" for start, end in zip(starts, ends, strict=True))


def _episodes(text: str) -> list[int]:
    pairs = [part.split("+") for part in text.split()]
    return [seed for first, count in pairs for seed in range(int(first), int(first) + int(count))]


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


def _exact(value: float) -> str:
    """All digits: what cannot be computed from the episodes."""
    return repr(value) if math.isfinite(value) else ""


def _cell(value: object) -> str:
    """Enough digits for whole numbers of tokens, and that the intervals are the same when they are made again."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _csv(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(head)
    out.writerows(lines)
    return text.getvalue()
