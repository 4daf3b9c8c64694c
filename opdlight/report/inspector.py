"""The data of the inspector: for each trajectory a row of its list, and a line of JSON, parsed when it is opened."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from opdlight.report.measures import token_columns
from opdlight.report.read import Run
from opdlight.report.text import script_json

T = TypeVar("T")
BYTES = 64_000_000  # most that the trajectories take on the page, so that a browser opens it at once
BINS = 40  # of the strip in the list, which shows where in a trajectory the gap is large
FULL = 3.0  # nats; a gap of this size has the full colour, in the strip as in a token


def embed(runs: Sequence[Run], limit: int) -> tuple[str, str, int]:
    """The list and the lines as JSON, and their number: spread evenly over all trajectories.

    They are at most `limit`, and fewer if these were more than `BYTES`: one of 15 turns takes half a megabyte.
    """
    found = _spread([(run.letter, t) for run in runs for t in run.trajectories], limit)
    lines = [script_json(t) for _, t in found]
    while (size := sum(map(len, lines))) > BYTES and len(found) > 1:
        fewer = max(1, min(len(found) - 1, int(len(found) * BYTES / size)))
        found, lines = _spread(found, fewer), _spread(lines, fewer)
    index = [row(letter, t) for letter, t in found]
    return script_json(index), "\n".join(lines), len(found)


def _spread(values: list[T], count: int) -> list[T]:
    """At most `count` of them at even distances."""
    if len(values) <= count:
        return values
    return [values[i] for i in np.linspace(0, len(values) - 1, count).round().astype(int)]


def row(letter: str, trajectory: dict[str, Any]) -> dict[str, Any]:
    """What the list shows of a trajectory, filters and sorts by; figures are of tokens that the mask keeps."""
    gaps, divergence, mass = (
        token_columns([trajectory], *n) for n in (("student", "teacher"), ("divergence",), ("mass",))
    )
    sizes = np.abs(gaps[:, 1] - gaps[:, 0])
    bins = np.array_split(sizes, min(BINS, len(sizes))) if len(sizes) else []
    return {
        **{name: trajectory[name] for name in ("task", "status", "stage", "update")},
        "run": letter,
        "turns": len(trajectory["turns"]),
        "tokens": sum(len(turn["ids"]) for turn in trajectory["turns"]),
        "worst": _round(sizes.max(initial=0.0)),
        "gap": _round(sizes.mean() if len(sizes) else 0.0),
        "divergence": _round(divergence.mean() if len(divergence) else 0.0),
        "coverage": _round(mass.min(initial=1.0)),
        "strip": "".join(str(round(9 * min(1.0, part.max() / FULL))) for part in bins),
    }


def _round(value: float) -> float:
    return float(f"{value:.4g}")
