"""Parses the files of a run row by row; a line that is cut or malformed is left out and becomes a note."""

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from opdlight.report.text import number, visible


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """One row of profile.csv: figures of the tokens of a task in one bucket of positions, or in one turn."""

    update: int
    task: str
    axis: str  # "position" or "turn"
    start: int
    end: int
    tokens: float
    values: dict[str, float]  # the other columns; NaN where empty


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One attempt at an episode, of which several may have its seed."""

    seed: int
    success: bool
    turns: int


def text_of(path: Path) -> str:
    """The text of a file; empty if there is no file."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def csv_rows(path: Path, notes: list[str]) -> list[dict[str, str]]:
    """The rows of a CSV file; a last line without a line break was cut, and is left out."""
    text = text_of(path).replace("\0", "")
    complete = text[: text.rfind("\n") + 1]
    if complete != text:
        notes.append(f"{path.name}: the last line was cut off, and is left out.")
    return list(csv.DictReader(io.StringIO(complete)))


def to_float(cell: str | None) -> float:
    """The number in a cell; NaN if it holds none."""
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan


def profile_rows(path: Path, notes: list[str]) -> list[Depth]:
    """The rows of profile.csv."""
    rows, bad = [], 0
    for row in csv_rows(path, notes):
        try:
            rows.append(_depth(row))
        except (KeyError, ValueError, TypeError, OverflowError):
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
        values={k: to_float(v) for k, v in row.items() if k not in named},
    )


def json_lines(path: Path, build: Callable[[Any], dict[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, converted by `build`; lines for which that fails are left out."""
    rows, bad = [], []
    text = text_of(path).replace("\0", "")
    for i, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(build(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                bad.append(i)
    if bad:
        one = f"line {bad[0]} cannot be read and is left out"
        many = f"{len(bad)} lines cannot be read and are left out, from line {bad[0]} on"
        cut = "; the last line was cut off" if bad[-1] == text.count("\n") + 1 else ""
        notes.append(f"{path.name}: {one if len(bad) == 1 else many}{cut}.")
    return rows


COLUMNS = ("student", "teacher", "engine", "mass", "divergence")


def trajectory_row(raw: Any) -> dict[str, Any]:
    """A line of trajectories.jsonl, with `visible` text and finite numbers."""
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
        "control": [bool(c) for c in raw.get("control") or [False] * len(raw["ids"])],
        "split": bool(raw["split"]),
        "finish_reason": visible(raw["finish_reason"]),
        "policy_version": int(raw["policy_version"]),
        "reward": number(raw["reward"]),
        "counts": {visible(str(k)): number(v) for k, v in raw.get("metrics", {}).items()},
        "ids": [int(i) for i in raw["ids"]],
        "text": [visible(t) for t in raw["text"]],
        "kept": [bool(k) for k in raw["kept"]],
        **{name: [number(v) for v in raw[name]] for name in COLUMNS},
        **{
            name: [[[visible(t), number(a), number(b)] for t, a, b in candidates or []] for candidates in raw[name]]
            for name in ("student_top", "teacher_top")
        },
    }
    lengths = {len(v) for v in turn.values() if isinstance(v, list)}
    if len(lengths) > 1:
        raise ValueError("the lists of a turn differ in length")
    return turn | {"parts": _parts(raw["prompt"], raw.get("prompt_control", []))}


def _parts(prompt: str, control: list[list[int]]) -> list[tuple[str, bool]]:
    """Split a prompt into parts (text, whether it is a control token); runs of older versions have one part."""
    edges = [0, *(int(edge) for span in control for edge in span), len(prompt)]
    if sorted(edges) != edges:
        raise ValueError("the control tokens of a prompt do not lie within it, one after the other")
    parts = ((visible(prompt[a:b]), n % 2 == 1) for n, (a, b) in enumerate(pairwise(edges)))
    return [(text, is_control) for text, is_control in parts if text]


def held_out_row(raw: Any) -> dict[str, Any]:
    """A line of held_out.jsonl; without episodes if they are of an older version, which did not note the turns."""
    episodes = [Episode(seed=int(e[0]), success=bool(e[1]), turns=int(e[3])) for e in raw["episodes"] if len(e) > 3]
    return {"step": int(raw["step"]), "task": visible(raw["task"]), "episodes": episodes}


def gap_row(raw: Any) -> dict[str, Any]:
    """A line of token_gaps.jsonl."""
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


def alarm_row(raw: Any) -> dict[str, Any]:
    """A line of alarms.jsonl."""
    until = raw.get("until")
    return {
        **{k: visible(raw[k]) for k in ("key", "kind", "meaning", "advice")},
        "update": int(raw["update"]),
        "value": number(raw["value"]),
        "threshold": number(raw["threshold"]),
        "until": None if until is None else int(until),
    }
