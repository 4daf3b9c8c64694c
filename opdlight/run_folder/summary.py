"""The result of a run: summary.json, curves.png and the table on the screen."""

import csv
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator
from rich.box import SIMPLE_HEAD
from rich.table import Table

from opdlight.metrics.success import Result
from opdlight.system.closing import Closing
from opdlight.system.console import narrow, say, show, table
from opdlight.system.files import replacing, write_text

SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Held-out results of one task: the student before and after training, and its teacher."""

    before: Result
    after: Result
    teacher: Result | None

    @property
    def gap_closed(self) -> float | None:
        """(after − before) / (teacher − before); None unless a teacher was measured and beats the student before."""
        if self.teacher is None or self.teacher.success <= self.before.success:
            return None
        return (self.after.success - self.before.success) / (self.teacher.success - self.before.success)


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the wall seconds of the block to `seconds[name]`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def close_run(
    folder: Path,
    outcome: Mapping[str, Outcome],
    closing: Closing,
    *,
    seconds: Mapping[str, float],
    generated: int,
    trained: int,
) -> None:
    """Write `curves.png` and `summary.json`, and print the table.

    Args:
        folder: the run folder.
        outcome: task → its results.
        closing: records what fails; the other parts are done all the same.
        seconds: part of the run → wall seconds; those of training begin with `train: `.
        generated: tokens that the student sampled.
        trained: loss positions.
    """
    rollout = seconds.get("train: rollout", 0.0)
    steps = sum(s for part, s in seconds.items() if part.startswith("train: ")) - rollout
    with closing.part("draw curves.png"):
        curves(folder)
    with closing.part(f"write {SUMMARY}"):
        summary = {
            "tasks": {n: {**asdict(o), "gap_closed": o.gap_closed} for n, o in outcome.items()},
            "seconds": dict(seconds),
            "tokens_per_second": {
                "rollout": generated / rollout if rollout else None,
                "train": trained / steps if steps else None,
            },
            "tokens": {"generated": generated, "trained": trained},
            "failed": dict(closing.failed),  # `resume` repeats these parts
        }
        write_text(folder / SUMMARY, json.dumps(summary, indent=2))
    with closing.part("print the table"):
        show(outcome_table(outcome, stacked=narrow()))
        for line in action_lines(outcome):
            say(line)
        say(f"run folder: {folder}")


def is_complete(folder: Path, *, teachers: bool) -> bool:
    """Whether a run has ended without a failed part, and has measured its teachers if `teachers` asks for that."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        measured = not teachers or any(task["teacher"] for task in summary["tasks"].values())
        return measured and not summary["failed"] and (folder / "student").is_dir()
    except (OSError, ValueError, KeyError):  # the run was killed before its end, or is of an older version
        return False


def read_successes(folder: Path) -> dict[str, float]:
    """Task → held-out success after training, from the summary."""
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    return {name: task["after"]["success"] for name, task in summary["tasks"].items()}


def outcome_table(outcome: Mapping[str, Outcome], *, stacked: bool) -> Table:
    """Success of the student before and after, and of the teacher; `stacked` puts intervals below the figures."""
    title = "held-out success with 95 % intervals"
    if stacked:
        made = table("task", "before", "after", "teacher", "gap", "n", title=title, box=SIMPLE_HEAD, pad_edge=False)
        made.caption = "n: episodes; gap: share that is closed"
    else:
        made = table("task", "student before", "student after", "teacher", "gap closed", "episodes", title=title)
    for name, o in outcome.items():
        closed = "–" if o.gap_closed is None else f"{100 * o.gap_closed:.0f} %"
        results = [_stacked(r) if stacked else str(r) for r in (o.before, o.after, *([o.teacher] if o.teacher else []))]
        many = f" ({o.after.title})" if o.after.samples > 1 else ""
        made.add_row(f"{name}{many}", *results, *([] if o.teacher else ["–"]), closed, str(o.after.episodes))
    return made


def action_lines(outcome: Mapping[str, Outcome]) -> Iterator[str]:
    """Admissible and wasted actions of the student before and after, and of the teacher; a line each for every task."""
    for name, o in outcome.items():
        results = {"before": o.before, "after": o.after, "of the teacher": o.teacher}
        for kind in ("admissible", "wasted"):
            found = {when: getattr(r, f"{kind}_actions", None) for when, r in results.items()}
            shares = ", ".join(f"{100 * share:.1f} % {when}" for when, share in found.items() if share is not None)
            if shares:
                yield f"{name}: {kind} actions: {shares}"


def _stacked(r: Result) -> str:
    return f"{100 * r.success:.1f} %\n{100 * r.low:.1f}–{100 * r.high:.1f}"


def curves(folder: Path) -> None:
    """Draw `curves.png` from `metrics.csv`."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    panels = {
        "loss (nats)": ("loss/",),
        "success": ("rollout/success/", "val/success/"),
        "coverage": ("coverage/student_mass/", "coverage/sampled_in_support/"),
        "tokens a turn": ("rollout/completion_tokens",),
        "seconds a step": ("time/",),
        "gradient norm": ("optimizer/grad_norm",),
    }
    figure, axes = plt.subplots(2, 3, figsize=(15, 7))
    # fixed: a layout engine draws everything twice, and the panels are always the same
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.065, top=0.955, wspace=0.2, hspace=0.3)
    for axis, (title, prefixes) in zip(axes.flat, panels.items(), strict=True):
        for key in sorted({k for row in rows for k, v in row.items() if v and k.startswith(prefixes)}):
            points = [(float(r["step"]), float(r[key])) for r in rows if r.get(key)]
            style = "o" if key.startswith("val/") else "." if len(points) == 1 else "-"
            axis.plot(*zip(*points, strict=True), style, label=key, linewidth=1.2)
        axis.set(title=title, xlabel="update")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    with replacing(folder / "curves.png") as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)
