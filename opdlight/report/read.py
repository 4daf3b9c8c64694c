"""Reads a run folder, finished or not; a missing or damaged file becomes a note on the page."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from opdlight.errors import ConfigError
from opdlight.report.rows import (
    Depth,
    alarm_row,
    csv_rows,
    gap_row,
    held_out_row,
    json_lines,
    profile_rows,
    text_of,
    to_float,
    trajectory_row,
)
from opdlight.report.text import number, visible

Array = NDArray[np.float64]
Curves = Mapping[str, tuple[Array, Array]]  # logged key → steps, values
WITHOUT = {  # file → what is missing on the page without it
    "config.yaml": "the run's configuration",
    "metrics.csv": "the curves",
    "summary.json": "the outcome table (the run has not finished)",
    "profile.csv": "the figures by position and by turn",
    "held_out.jsonl": "success by the number of turns",
    "trajectories.jsonl": "the inspector and the figures of single tokens",
    "token_gaps.jsonl": "the table of tokens that carry the gap",
    "alarms.jsonl": "the alarms",
}
OPTIONAL = ("alarms.jsonl", "held_out.jsonl")  # a run without an alarm, or of an older version, has none


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The contents of a run folder."""

    letter: str  # A, B, … on this page
    name: str
    folder: Path
    config: dict[str, str]  # dotted key → value
    curves: Curves
    summary: dict[str, Any]
    profile: list[Depth]
    held_out: list[dict[str, Any]]
    trajectories: list[dict[str, Any]]
    token_gaps: list[dict[str, Any]]
    alarms: list[dict[str, Any]]
    notes: list[str]  # what is missing or unreadable

    @property
    def updates(self) -> int:
        """The number of updates in metrics.csv."""
        steps = self.curves.get("loss/train", (np.empty(0), np.empty(0)))[0]
        return int(steps.max()) + 1 if len(steps) else 0

    @property
    def tasks(self) -> list[str]:
        """All tasks that are named in any of the files."""
        named = [k.split("/", 2)[2] for k in self.curves if k.startswith(("rollout/success/", "val/success/"))]
        rows = [r["task"] for r in (*self.trajectories, *self.token_gaps)]
        return sorted({*self.summary.get("tasks", {}), *named, *rows, *(d.task for d in self.profile)})


def read_run(folder: Path, letter: str = "A") -> Run:
    """Read everything that can be read in `folder`; `letter` is the run's on this page.

    Raises:
        ConfigError: if `folder` contains none of the files of a run.
    """
    if not any((folder / name).is_file() for name in WITHOUT):
        files = ", ".join(WITHOUT)
        raise ConfigError.wrong("run", expected=f"the folder of a run (one that holds {files})", got=str(folder))
    notes = [
        f"{name} is missing: without it the page lacks {what}."
        for name, what in WITHOUT.items()
        if not (folder / name).is_file() and name not in OPTIONAL
    ]
    real = folder.resolve()
    return Run(
        letter=letter,
        name=visible(real.name),
        folder=real,
        config=read_config(folder / "config.yaml", notes),
        curves=read_curves(folder / "metrics.csv", notes),
        summary=read_summary(folder / "summary.json", notes),
        profile=profile_rows(folder / "profile.csv", notes),
        held_out=json_lines(folder / "held_out.jsonl", held_out_row, notes),
        trajectories=json_lines(folder / "trajectories.jsonl", trajectory_row, notes),
        token_gaps=json_lines(folder / "token_gaps.jsonl", gap_row, notes),
        alarms=json_lines(folder / "alarms.jsonl", alarm_row, notes),
        notes=notes,
    )


def read_config(path: Path, notes: list[str]) -> dict[str, str]:
    """Dotted key → value of a configuration, as JSON text."""
    if not path.is_file():
        return {}
    try:
        plain = OmegaConf.to_container(OmegaConf.load(path))
    except (OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        notes.append(f"config.yaml cannot be read: {visible(str(error).splitlines()[0])}")
        return {}
    flat: dict[str, str] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, Mapping) and value:
            for key, child in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), child)
        else:
            flat[visible(prefix)] = visible(json.dumps(value, ensure_ascii=False, default=str))

    walk("", plain)
    return flat


def read_summary(path: Path, notes: list[str]) -> dict[str, Any]:
    """summary.json with finite numbers; empty where there is none, or none that can be read."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(text_of(path))
        for task in value["tasks"].values():
            for when in ("before", "after", "teacher"):
                result = task[when]
                if result is not None or when != "teacher":
                    result.update({k: float(result[k]) for k in ("success", "low", "high", "episodes")})
            task["gap_closed"] = number(task.get("gap_closed"))
        for name in ("seconds", "tokens"):
            value[name] = {k: number(v) for k, v in value.get(name, {}).items()}
        value["tasks"] = {visible(name): task for name, task in value["tasks"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        notes.append(f"{path.name} does not have the form that a run writes, and was left out.")
        return {}
    return value


def read_curves(path: Path, notes: list[str]) -> dict[str, tuple[Array, Array]]:
    """Every logged key of metrics.csv → steps and values, in the order of the rows."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in csv_rows(path, notes):
        step = to_float(row.get("step"))
        for key, cell in row.items():
            value = to_float(cell) if isinstance(cell, str) else math.nan
            if key not in (None, "step", "epoch") and math.isfinite(value) and math.isfinite(step):
                points.setdefault(visible(key), []).append((step, value))
    return {k: (np.array([s for s, _ in p]), np.array([v for _, v in p])) for k, p in points.items()}
