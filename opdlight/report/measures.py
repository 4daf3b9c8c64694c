"""Pure functions that compute from the rows of a run what the figures show."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opdlight.envs.base import read_action
from opdlight.metrics.success import success_interval
from opdlight.report.read import Array, Curves
from opdlight.report.rows import Depth, Episode

Band = dict[tuple[int, int], tuple[float, float, float]]  # bucket → low, middle, high
THIRDS = ("first third", "middle third", "last third")


def smooth(values: Array, window: int) -> Array:
    """Centred running mean [n] of `values` [n] over `window` neighbours, and over fewer at the ends."""
    if window <= 1 or len(values) < 3:
        return values
    box = np.ones(min(window, len(values)))
    return np.convolve(values, box, "same") / np.convolve(np.ones(len(values)), box, "same")


def updates_by_task(curves: Curves) -> dict[str, Array]:
    """Task → the updates [n] that had it; empty if an update had several, or if it is not known."""
    prefix = "rollout/success/"
    had = {key.removeprefix(prefix): curves[key][0] for key in sorted(curves) if key.startswith(prefix)}
    count = sum(map(len, had.values()))
    return had if len({step for steps in had.values() for step in steps.tolist()}) == count else {}


def points_of(curves: Curves, key: str, task: str) -> tuple[Array, Array] | None:
    """Steps and values of a key, only of the updates that had the task, if it names one; None without any."""
    if key not in curves:
        return None
    steps, values = curves[key]
    if task:
        kept = np.isin(steps, updates_by_task(curves).get(task, []))
        steps, values = steps[kept], values[kept]
    return (steps, values) if len(steps) else None


def concentration(sizes: Array) -> tuple[Array, Array]:
    """The share of the largest tokens, and the share of Σ sizes that these carry; both [n + 1], from 0 to 1.

    >>> concentration(np.array([1.0, 3.0]))[1].tolist()
    [0.0, 0.75, 1.0]
    """
    ordered = np.sort(sizes)[::-1]
    total = ordered.sum()
    carried = np.cumsum(ordered) / total if total > 0 else np.arange(1, len(ordered) + 1) / max(len(ordered), 1)
    return np.arange(len(ordered) + 1) / max(len(ordered), 1), np.concatenate([[0.0], carried])


def part_of(update: int, first: int, last: int) -> int:
    """0, 1 or 2: the third of the run [first, last] in which `update` lies.

    >>> [part_of(u, 0, 8) for u in range(9)]
    [0, 0, 0, 1, 1, 1, 2, 2, 2]
    """
    return min(2, 3 * (update - first) // (last - first + 1))


def by_bucket(rows: Iterable[Depth], key: str) -> dict[tuple[int, int], float]:
    """(start, end) of a bucket → token-weighted mean of the column `key`, sorted; empty cells are ignored."""
    sums: dict[tuple[int, int], tuple[float, float]] = {}
    for row in rows:
        value = row.values.get(key, float("nan"))
        if np.isfinite(value) and 0 < row.tokens < np.inf:
            total, weight = sums.get((row.start, row.end), (0.0, 0.0))
            sums[row.start, row.end] = (total + value * row.tokens, weight + row.tokens)
    return {bucket: total / weight for bucket, (total, weight) in sorted(sums.items())}


def thirds(rows: Sequence[Depth]) -> list[Band]:
    """The 10 %, 50 % and 90 % quantile of the gap by bucket in each third of the run: token-weighted means."""
    first, last = min((r.update for r in rows), default=0), max((r.update for r in rows), default=0)
    bands: list[Band] = []
    for part in range(len(THIRDS)):
        in_part = [r for r in rows if part_of(r.update, first, last) == part]
        low, middle, high = (by_bucket(in_part, f"gap_q{q}") for q in (10, 50, 90))
        bands.append({b: (low[b], middle[b], high[b]) for b in low if b in middle and b in high})
    return bands


def heat(rows: Sequence[Depth], key: str, columns: int) -> tuple[Array, list[tuple[int, int]], Array]:
    """Edges [c + 1] in updates, buckets [b], and the token-weighted mean of `key` in each cell [b, c]; NaN: no token.

    A column is an update that has rows, or several neighbouring ones if there are more than `columns`. It extends to
    the next column, so that a task that is not in every update leaves no gaps.
    """
    updates = sorted({r.update for r in rows})
    parts = np.array_split(updates, min(columns, len(updates)))
    edges = np.array([*(part[0] for part in parts), updates[-1] + 1], dtype=float)
    buckets = sorted({(r.start, r.end) for r in rows})
    cells = np.full((len(buckets), len(parts)), np.nan)
    for c, part in enumerate(parts):
        means = by_bucket((r for r in rows if part[0] <= r.update <= part[-1]), key)
        for b, bucket in enumerate(buckets):
            cells[b, c] = means.get(bucket, np.nan)
    return edges, buckets, cells


def token_columns(trajectories: Iterable[Mapping[str, Any]], *names: str) -> Array:
    """The columns `names` of all tokens that the mask keeps and that have a number in each column, [tokens, names]."""
    rows = [
        values
        for t in trajectories
        for turn in t["turns"]
        for kept, *values in zip(turn["kept"], *(turn[n] for n in names), strict=True)
        if kept and None not in values
    ]
    return np.array(rows, dtype=float).reshape(-1, len(names))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Success of the episodes that took so many turns."""

    share: float
    low: float  # 95 % interval, episodes of one seed as one unit
    high: float
    count: int  # of episodes, every attempt counted


def success_by_turns(episodes: Iterable[Episode], width: int) -> dict[int, Bar]:
    """Success by the number of turns, `width` neighbouring numbers together, under the first of them.

    Episodes that ended before their first turn are left out.
    """
    found: dict[int, dict[int, list[float]]] = {}
    for e in episodes:
        if e.turns > 0:
            first = 1 + (e.turns - 1) // width * width
            found.setdefault(first, {}).setdefault(e.seed, []).append(float(e.success))
    bars = {}
    for first, by_seed in sorted(found.items()):
        attempts = list(by_seed.values())
        count, won = sum(map(len, attempts)), sum(map(sum, attempts))
        low, high = success_interval(attempts)[1]
        bars[first] = Bar(share=won / count, low=low, high=high, count=count)
    return bars


def solved_within(episodes: Iterable[Episode], most: int) -> Array:
    """Share of the episodes that were solved within t turns and its 95 % interval, [most + 1, 3] for t from 0 on.

    Several attempts at one episode, which have its seed, count as their mean; the interval has the episode as unit.
    """
    needed: dict[int, list[float]] = {}
    for e in episodes:
        needed.setdefault(e.seed, []).append(e.turns if e.success else np.inf)
    rows = []
    for t in range(most + 1):
        share, interval = success_interval([[float(n <= t) for n in attempts] for attempts in needed.values()])
        rows.append([share, *interval])
    return np.array(rows)


def action_text(turn: Mapping[str, Any]) -> str:
    """The action in a turn, as environments read it (`read_action`); all that the student wrote if there is none.

    >>> turn = {"text": ["<think>", "Up?", "</think>", "Go ", "up.", "<|end|>"], "control": [1, 0, 1, 0, 0, 1]}
    >>> action_text(turn)
    'go up'
    """
    marks = ("<think>", "</think>")
    pieces = zip(turn["text"], turn["control"], strict=True)
    text = "".join(text for text, control in pieces if not control or text in marks)
    return read_action(text) or text


def config_differences(configs: Sequence[Mapping[str, str]], run_dirs: Sequence[str]) -> dict[str, list[str | None]]:
    """Keys whose values differ → the value of each run, None if it lacks the key; the paths `run_dirs` are ignored."""
    plain = [{k: v.replace(d, "<run>") for k, v in c.items()} for c, d in zip(configs, run_dirs, strict=True)]
    keys = dict.fromkeys(k for c in plain for k in c)
    return {k: row for k in keys if len({*(row := [c.get(k) for c in plain])}) > 1}


def joined_alarms(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per alarm: the line that ends an alarm replaces the `until` of the line that began it."""
    alarms: dict[tuple[str, int], dict[str, Any]] = {}
    for line in lines:
        alarms.setdefault((line["key"], line["update"]), dict(line))["until"] = line["until"]
    return list(alarms.values())
