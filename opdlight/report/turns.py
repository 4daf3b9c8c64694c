"""Tasks of several turns: gap and coverage by turn, success by the number of turns, and what was wasted."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator, PercentFormatter

from opdlight.envs.actions import ADMISSIBLE, UNPARSABLE, WASTED
from opdlight.report.depth import rows_of
from opdlight.report.draw import INK, MUTED, RUNS, Chart, canvas, chart, legend
from opdlight.report.measures import THIRDS, action_text, by_bucket, part_of, solved_within, success_by_turns
from opdlight.report.read import Run
from opdlight.report.rows import Depth, Episode
from opdlight.report.text import shortened

MOST_BARS = 12  # of success by the number of turns; more numbers share a bar
MOST_ACTIONS = 10  # in the table of wasted actions
LONGEST = 80  # characters of a text in it


def draw_turns(runs: Sequence[Run], tasks: Sequence[str]) -> Iterator[Chart]:
    """The figures of each task of more than one turn."""
    for task in tasks:
        ends = {run.letter: _first_and_last(run, task) for run in runs}
        if any(e.turns > 1 for pair in ends.values() for evaluation in pair for e in evaluation):
            yield _solved_within(ends, runs, task)
        played = {run.letter: ends[run.letter][1] or ends[run.letter][0] or _recorded(run, task) for run in runs}
        if any(e.turns > 1 for episodes in played.values() for e in episodes):
            yield _success(played, runs, task)
        rows = {run.letter: rows_of(run, task, "turn") for run in runs}
        if any(row.start > 0 for found in rows.values() for row in found):
            yield _by_turn(rows, runs, task, "abs_gap", "Gap by turn", "mean |log q − log π|, nats", GAP_BY_TURN)
            yield _by_turn(rows, runs, task, "student_mass", "Coverage by turn", "", COVERAGE_BY_TURN)


def _first_and_last(run: Run, task: str) -> tuple[list[Episode], list[Episode]]:
    """The held-out episodes of the first evaluation and of the last; none of runs that did not note the turns."""
    found = [line["episodes"] for line in run.held_out if line["task"] == task and line["episodes"]]
    return (found[0] if found else [], found[-1] if len(found) > 1 else [])


def _recorded(run: Run, task: str) -> list[Episode]:
    """The recorded trajectories, of runs that did not note the turns of held-out episodes."""
    return [
        Episode(seed=t["seed"], success=t["status"] == "success", turns=len(t["turns"]))
        for t in run.trajectories
        if t["task"] == task
    ]


def _solved_within(ends: Mapping[str, tuple[list[Episode], list[Episode]]], runs: Sequence[Run], task: str) -> Chart:
    figure, axis = canvas()
    most = max((e.turns for pair in ends.values() for evaluation in pair for e in evaluation), default=1)
    for i, run in enumerate(runs):
        colour = RUNS[i % len(RUNS)]
        for episodes, name, style in zip(ends[run.letter], ("first", "last"), ((0, (1, 1.4)), "-"), strict=True):
            if episodes:
                share, low, high = solved_within(episodes, most).T
                at = range(most + 1)
                axis.fill_between(at, low, high, step="post", color=colour, alpha=0.13, lw=0)
                label = name if len(runs) == 1 else run.letter if name == "last" else None
                axis.step(at, share, where="post", color=colour, lw=2, ls=style, label=label)
    axis.set(ylim=(-0.02, 1.02), xlim=(0, most), xlabel="turns")
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    legend(axis)
    counts = {len({e.seed for e in pair[0]}) for pair in ends.values() if pair[0]}
    caption = (
        f"Share of the held-out episodes ({' or '.join(f'{n:,}' for n in sorted(counts))}) that were solved within so "
        "many turns, in the first evaluation (dotted) and the last (solid), with 95 % intervals; healthy: the solid "
        "line lies above the dotted one and is flat before the limit of turns, or more turns would solve more."
    )
    return chart(f"solved within {task}", f"Solved within so many turns · {task}", caption, figure)


GAP_BY_TURN = (
    "Mean |log q − log π| of the tokens of each turn, first third of the run (dotted) and last (solid); "
    "healthy: the solid line is lower, and does not climb in late turns."
)
COVERAGE_BY_TURN = (
    "Student probability on the teacher's top-K by turn, first third of the run (dotted) and last (solid); "
    "healthy: the solid line stays over 90 % to the last turn."
)


def _by_turn(
    rows: dict[str, list[Depth]], runs: Sequence[Run], task: str, key: str, title: str, unit: str, caption: str
) -> Chart:
    figure, axis = canvas()
    for i, run in enumerate(runs):
        of_run = rows[run.letter]
        for part, style in ((0, (0, (1, 1.4))), (2, "-")):
            first, last = min((r.update for r in of_run), default=0), max((r.update for r in of_run), default=0)
            means = by_bucket((r for r in of_run if part_of(r.update, first, last) == part), key)
            label = (run.letter if len(runs) > 1 else THIRDS[part]) if part == 2 or len(runs) == 1 else None
            turns = [start + 1 for start, _ in means]
            axis.plot(turns, list(means.values()), ls=style, lw=2, color=RUNS[i % len(RUNS)], label=label)
    if not unit:
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axis.set(xlabel="turn", ylabel=unit)
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    legend(axis)
    return chart(f"turn {key} {task}", f"{title} · {task}", caption, figure)


def _success(played: Mapping[str, list[Episode]], runs: Sequence[Run], task: str) -> Chart:
    figure, axis = canvas()
    most = max(e.turns for episodes in played.values() for e in episodes)
    width = -(-most // MOST_BARS)
    thick = 0.8 * width / len(runs)
    for i, run in enumerate(runs):
        for first, bar in success_by_turns(played[run.letter], width).items():
            x = first + (width - 1) / 2 + (i - (len(runs) - 1) / 2) * thick
            axis.bar(x, bar.share, thick * 0.86, color=RUNS[i % len(RUNS)], alpha=0.75)
            axis.plot([x, x], [bar.low, bar.high], color=INK, lw=1)
            if len(runs) == 1:
                axis.text(x, -0.045, f"{bar.count}", ha="center", va="top", fontsize=7, color=MUTED)
        if len(runs) > 1:
            axis.plot([], [], "s", ms=6, color=RUNS[i % len(RUNS)], label=run.letter)
    axis.set_ylim(-0.12 if len(runs) == 1 else 0, 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.set(xlabel="turns of the episode" + (" (small: how many episodes)" if len(runs) == 1 else ""))
    axis.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    legend(axis)
    caption = (
        "Success by the number of turns that an episode took, with 95 % intervals: held-out episodes of the last "
        "evaluation, or the recorded trajectories of a run that did not note their turns; healthy: no cliff at a "
        "number of turns below the limit."
    )
    return chart(f"success by turns {task}", f"Success by number of turns · {task}", caption, figure)


def wasted_tables(run: Run) -> Iterator[dict[str, Any]]:
    """For each task the texts on which most actions were wasted, in the recorded trajectories."""
    for task in run.tasks:
        turns = [turn for t in run.trajectories if t["task"] == task for turn in t["turns"]]
        judged = sum(ADMISSIBLE in turn["counts"] for turn in turns)
        wasted = Counter((kind, action_text(turn)) for turn in turns for kind in WASTED if turn["counts"].get(kind))
        if wasted:
            most = wasted.most_common(MOST_ACTIONS)
            yield {
                "task": task,
                "letter": run.letter,
                "judged": f"{judged:,}",
                "wasted": f"{wasted.total():,}",
                "rows": [
                    {
                        "text": _one_line(text, end=kind == UNPARSABLE) or "∅",
                        "kind": kind.removesuffix("_actions"),
                        "count": f"{count:,}",
                        "share": f"{100 * count / wasted.total():.1f} %",
                        "width": f"{count / most[0][1]:.3f}",
                    }
                    for (kind, text), count in most
                ],
            }


def _one_line(text: str, *, end: bool) -> str:
    """The beginning or the end of a text, in one line."""
    line = " ".join(text.split())
    return "…" + line[1 - LONGEST :] if end and len(line) > LONGEST else shortened(line, LONGEST)


def turn_lines(run: Run) -> Iterator[str]:
    """For the terminal: success by depth and what was wasted, a line each for every task of more than one turn."""
    for task in run.tasks:
        first, last = _first_and_last(run, task)
        most = max((e.turns for e in [*first, *last]), default=0)
        if most > 1:
            at = sorted({max(1, round(most * part)) for part in (0.25, 0.5, 0.75, 1)})
            shares = [" / ".join(f"{100 * solved_within(e, most)[t, 0]:.0f}" for t in at) for e in (first, last) if e]
            yield f"{task}: solved within {' / '.join(map(str, at))} turns: {_before_and_after(shares)}"
        for name in ("admissible", "wasted"):
            if (key := f"val/{name}_actions/{task}") in run.curves:
                values = run.curves[key][1]
                ends = [values[0], values[-1]] if len(values) > 1 else values
                yield f"{task}: {name} actions: {_before_and_after([f'{100 * v:.1f}' for v in ends])}"


def _before_and_after(percent: Sequence[str]) -> str:
    """Of the first and the last evaluation, or of the only one."""
    return ", then ".join(f"{p} %" for p in percent)
