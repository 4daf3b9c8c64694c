"""Read a run folder as it is: finished or killed, with every file or few. What is missing becomes a note, not an error."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from opdlight.errors import ConfigError
from opdlight.report.text import number, visible

Array = NDArray[np.float64]
WITHOUT = {  # file → what the page lacks without it
    "config.yaml": "the run's configuration",
    "metrics.csv": "the curves",
    "summary.json": "the outcome table (the run is still going, or was stopped)",
    "profile.csv": "the figures by position and by turn",
    "trajectories.jsonl": "the inspector and the figures of single tokens",
    "token_gaps.jsonl": "the table of tokens that carry the gap",
    "alarms.jsonl": "the alarms",
}
MAY_LACK = ("alarms.jsonl",)  # a run without an alarm


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """One row of profile.csv: figures of one task's tokens in one bucket of positions or in one turn."""

    update: int
    task: str
    axis: str  # "position" or "turn"
    start: int
    end: int
    tokens: float
    values: dict[str, float]  # the other columns; NaN where empty


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run folder holds."""

    letter: str  # A, B, … on this page
    name: str
    folder: Path
    config: dict[str, str]  # dotted key → value
    curves: dict[str, tuple[Array, Array]]  # logged key → steps, values
    summary: dict[str, Any]
    profile: list[Depth]
    trajectories: list[dict[str, Any]]
    token_gaps: list[dict[str, Any]]
    alarms: list[dict[str, Any]]
    notes: list[str]  # what is missing or unreadable

    @property
    def updates(self) -> int:
        """Updates that metrics.csv knows of."""
        steps = self.curves.get("loss/train", (np.empty(0), np.empty(0)))[0]
        return int(steps.max()) + 1 if len(steps) else 0

    @property
    def tasks(self) -> list[str]:
        """Every task that any of the files names."""
        named = [k.split("/")[2] for k in self.curves if k.startswith(("rollout/success/", "val/success/"))]
        rows = [r["task"] for r in (*self.trajectories, *self.token_gaps)]
        return sorted({*self.summary.get("tasks", {}), *named, *rows, *(d.task for d in self.profile)})


def read_run(folder: Path, letter: str = "A") -> Run:
    """Everything that can be read in `folder`.

    Raises:
        ConfigError: `folder` holds none of the files of a run.
    """
    if not any((folder / name).is_file() for name in WITHOUT):
        files = ", ".join(WITHOUT)
        raise ConfigError.wrong("run", expected=f"the folder of a run (one that holds {files})", got=str(folder))
    notes = [
        f"{name} is missing: without it the page lacks {what}."
        for name, what in WITHOUT.items()
        if not (folder / name).is_file() and name not in MAY_LACK
    ]
    real = folder.resolve()
    return Run(
        letter=letter,
        name=visible(real.name),
        folder=real,
        config=_config(folder / "config.yaml", notes),
        curves=_curves(folder / "metrics.csv", notes),
        summary=_json(folder / "summary.json", notes),
        profile=_table(folder / "profile.csv", _depth, notes),
        trajectories=_lines(folder / "trajectories.jsonl", _trajectory, notes),
        token_gaps=_lines(folder / "token_gaps.jsonl", _gap, notes),
        alarms=_lines(folder / "alarms.jsonl", _alarm, notes),
        notes=notes,
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _config(path: Path, notes: list[str]) -> dict[str, str]:
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
            flat[prefix] = json.dumps(value, ensure_ascii=False, default=str)

    walk("", plain)
    return flat


def _json(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(_text(path))
        for task in value["tasks"].values():
            for when in ("before", "after", "teacher"):
                result = task[when]
                if result is not None or when != "teacher":
                    result.update({k: float(result[k]) for k in ("success", "low", "high", "episodes")})
    except (ValueError, TypeError, KeyError, AttributeError):
        notes.append(f"{path.name} is not what a run writes, and was left out.")
        return {}
    return value


def _rows(path: Path, notes: list[str]) -> list[dict[str, str]]:
    """Rows of a CSV file; a last line without its line break was cut, and is left out."""
    text = _text(path).replace("\0", "")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        notes.append(f"{path.name}: the last line was cut off, and is left out.")
    return list(csv.DictReader(io.StringIO(whole)))


def _float(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan


def _curves(path: Path, notes: list[str]) -> dict[str, tuple[Array, Array]]:
    points: dict[str, list[tuple[float, float]]] = {}
    for row in _rows(path, notes):
        step = _float(row.get("step"))
        for key, cell in row.items():
            value = _float(cell) if isinstance(cell, str) else math.nan
            if key not in (None, "step", "epoch") and math.isfinite(value) and math.isfinite(step):
                points.setdefault(key, []).append((step, value))
    return {k: (np.array([s for s, _ in p]), np.array([v for _, v in p])) for k, p in points.items()}


def _table(path: Path, build: Callable[[dict[str, str]], Depth], notes: list[str]) -> list[Depth]:
    rows, bad = [], 0
    for row in _rows(path, notes):
        try:
            rows.append(build(row))
        except (KeyError, ValueError, TypeError):
            bad += 1
    if bad:
        notes.append(f"{path.name}: {bad} rows cannot be read, and are left out.")
    return rows


def _depth(row: dict[str, str]) -> Depth:
    named = ("update", "task", "axis", "start", "end", "tokens")
    return Depth(
        update=int(row["update"]),
        task=visible(row["task"]),
        axis=row["axis"],
        start=int(row["start"]),
        end=int(row["end"]),
        tokens=float(row["tokens"]),
        values={k: _float(v) for k, v in row.items() if k not in named},
    )


def _lines(path: Path, build: Callable[[Any], dict[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file; lines that are cut or not in the form that `build` expects are counted."""
    rows, bad = [], []
    text = _text(path).replace("\0", "")
    for i, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(build(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                bad.append(i)
    if bad:
        cut = " (the last line was cut off)" if bad[-1] == text.count("\n") + 1 else ""
        some = "1 line" if len(bad) == 1 else f"{len(bad)} lines"
        notes.append(f"{path.name}: {some} cannot be read{cut}, from line {bad[0]} on, and left out.")
    return rows


COLUMNS = ("student", "teacher", "engine", "mass", "divergence")


def _trajectory(raw: Any) -> dict[str, Any]:
    return {
        "update": int(raw["update"]),
        "stage": visible(raw["stage"]),
        "task": visible(raw["task"]),
        "seed": int(raw["seed"]),
        "group": int(raw["group"]),
        "status": visible(raw["status"]),
        "reward": number(raw["reward"]),
        "metrics": {visible(str(k)): number(v) for k, v in raw["metrics"].items()},
        "turns": [_turn(turn) for turn in raw["turns"]],
    }


def _turn(raw: Any) -> dict[str, Any]:
    turn = {
        "prompt": visible(raw["prompt"]),
        "split": bool(raw["split"]),
        "finish_reason": visible(raw["finish_reason"]),
        "policy_version": int(raw["policy_version"]),
        "reward": number(raw["reward"]),
        "ids": [int(i) for i in raw["ids"]],
        "text": [visible(t) for t in raw["text"]],
        "kept": [bool(k) for k in raw["kept"]],
        **{name: [number(v) for v in raw[name]] for name in COLUMNS},
        **{
            name: [[[visible(t), number(a), number(b)] for t, a, b in candidates] for candidates in raw[name]]
            for name in ("student_top", "teacher_top")
        },
    }
    lengths = {len(v) for v in turn.values() if isinstance(v, list)}
    if len(lengths) > 1:
        raise ValueError("the lists of a turn differ in length")
    return turn


def _gap(raw: Any) -> dict[str, Any]:
    rows = [
        {
            "text": visible(r["text"]),
            "id": int(r["id"]),
            "special": bool(r["special"]),
            "count": int(r["count"]),
            "mean": number(r["mean"]),
            "share": number(r["share"]),
        }
        for r in raw["rows"]
    ]
    return {"update": int(raw["update"]), "task": visible(raw["task"]), "tokens": int(raw["tokens"]), "rows": rows}


def _alarm(raw: Any) -> dict[str, Any]:
    until = raw.get("until")
    return {
        **{k: visible(raw[k]) for k in ("key", "kind", "meaning", "advice")},
        "update": int(raw["update"]),
        "value": number(raw["value"]),
        "threshold": number(raw["threshold"]),
        "until": None if until is None else int(until),
    }
