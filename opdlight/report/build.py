"""Makes the page from run folders: read, draw, fill the template, write."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from opdlight.errors import ConfigError
from opdlight.report.arms.page import arms_page
from opdlight.report.arms.select import runs_to_compare
from opdlight.report.arms.terminal import arms_table
from opdlight.report.curves import draw_curves
from opdlight.report.depth import draw_depth
from opdlight.report.draw import RUNS, STYLE, THEMED, Chart
from opdlight.report.html import Section, fill
from opdlight.report.inspector import embed
from opdlight.report.measures import config_differences, joined_alarms
from opdlight.report.naming import distinct, names
from opdlight.report.outcome import draw_outcome
from opdlight.report.read import Run, read_run
from opdlight.report.text import visible
from opdlight.report.tokens import draw_tokens
from opdlight.report.turns import draw_turns, turn_lines, wasted_tables
from opdlight.system.console import progress, say, show, track
from opdlight.system.files import write_text

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def report(
    run: str | Sequence[str], out: str | None = None, trajectories: int = 1000, baseline: str | None = None
) -> Path:
    """Write the page and its figures, and return the path of the page.

    Runs of which some differ only in their seed, and those below a folder, are compared by arm.

    Args:
        run: the folder of a run, or one that holds runs, or several of them.
        out: path of the page; by default `<run>/report/index.html`, for several runs `report/index.html` beside the
            first.
        trajectories: most trajectories in the inspector, which only pages of single runs have.
        baseline: the arm that others are compared with, or a part of its name; None: the first.

    Raises:
        ConfigError: if a folder is not that of a run and holds none, or another argument is invalid.
    """
    folders = distinct([Path(f) for f in ([run] if isinstance(run, str) else run)])
    if out is not None and Path(out).suffix != ".html":
        raise ConfigError.wrong("out", expected="a file that ends in .html", got=out)
    if trajectories < 0:
        raise ConfigError.wrong("trajectories", expected="0 or more", got=trajectories)
    beside = folders[0] if len(folders) == 1 else folders[0].resolve().parent if folders else Path()
    file = Path(out) if out else beside.resolve() / "report" / "index.html"
    if swept := runs_to_compare(folders):
        title = visible(beside.resolve().name)
        for part in arms_page(swept, file, baseline=baseline, title=title):
            show(arms_table(part))
        say(f"report: {file}")
        return file
    if not 0 < len(folders) <= len(LETTERS):
        raise ConfigError.wrong("run", expected=f"the folders of 1 to {len(LETTERS)} runs", got=run)
    if baseline is not None:
        raise ConfigError.wrong("baseline", expected="null where runs are not compared by arm", got=baseline)
    lettered = list(zip(folders, LETTERS, strict=False))
    runs = [read_run(folder, letter) for folder, letter in track(lettered, "reading runs", log=False)]
    figures = file.parent / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    with progress("drawing", log=False), matplotlib.rc_context(STYLE):
        parts = sections(runs)
    for chart in (chart for part in parts for chart in part.charts):
        (figures / f"{chart.slug}.png").write_bytes(chart.png)
    write_text(file, page(runs, parts, trajectories))
    for found in runs:
        for line in turn_lines(found):
            say(f"{found.letter} · {line}" if len(runs) > 1 else line)
    say(f"report: {file}")
    return file


def sections(runs: Sequence[Run]) -> list[Section]:
    """The parts of the page, with their figures drawn."""
    tasks = sorted({task for run in runs for task in run.tasks})

    def part(slug: str, title: str, charts: Iterable[Chart], missing: str) -> Section:
        drawn = list(charts)
        return Section(slug=slug, title=title, charts=drawn, empty="" if drawn else f"Nothing to show: {missing}.")

    parts = [
        part("outcome", "Outcome", draw_outcome(runs), "no run has finished, so none has a summary.json"),
        Section(slug="alarms", title="Alarms"),
        part("curves", "Curves", draw_curves(runs, tasks), "metrics.csv is missing or empty"),
        part("depth", "Depth", draw_depth(runs, tasks), "profile.csv is missing or empty"),
        part("tokens", "Tokens", draw_tokens(runs, tasks), "trajectories.jsonl is missing or empty"),
        part("turns", "Turns", draw_turns(runs, tasks), "no task of more than one turn was recorded"),
    ]
    if len(runs) > 1:
        parts.insert(1, Section(slug="differences", title="Differences"))
    return parts


def page(runs: Sequence[Run], parts: Sequence[Section], limit: int) -> str:
    """The HTML of the page.

    Args:
        runs: what the page is about.
        parts: its sections.
        limit: most trajectories in the inspector.
    """
    index, lines, shown = embed(runs, limit)
    run_names = names(runs)
    run_dirs = [run.config.get("run_dir", "").strip('"') or "<run>" for run in runs]
    return fill(
        "report.html",
        styles=("page.css", "inspector.css"),
        scripts=("page.js", "tabs.js", "token.js", "fold.js", "inspector.js"),
        title=" · ".join(run_names),
        sections=parts,
        cards=[_card(i, run, name) for i, (run, name) in enumerate(zip(runs, run_names, strict=True))],
        outcome=sorted((row for run in runs for row in _outcome(run)), key=lambda row: row["task"]),
        alarms=[_alarm(run, a) for run in runs for a in joined_alarms(run.alarms)],
        differences=config_differences([run.config for run in runs], run_dirs),
        gaps=[table for run in runs for table in _gaps(run)],
        wasted=[table for run in runs for table in wasted_tables(run)],
        index=index,
        lines=lines,
        shown=shown,
    )


def _card(i: int, run: Run, name: str) -> dict[str, Any]:
    tokens = run.summary.get("tokens", {}).get("generated")
    seconds = run.summary.get("seconds", {}).get("train")
    alarms = joined_alarms(run.alarms)
    on = sum(a["until"] is None for a in alarms)
    found = [task["gap_closed"] for _, task in sorted(run.summary.get("tasks", {}).items())]
    closed = [_percent(share, 0) for share in found if share is not None]
    tiles = [
        ("updates", f"{run.updates:,}"),
        ("gap closed", " · ".join(closed) or "–"),
        ("tokens generated", "–" if tokens is None else f"{tokens:,.0f}"),
        ("training time", "–" if seconds is None else f"{seconds / 60:.1f} min"),
        ("trajectories recorded", f"{len(run.trajectories):,}"),
        ("alarms", f"{len(alarms)}" + (f" ({on} on)" if on else "")),
    ]
    return {
        "letter": run.letter,
        "name": name,
        "folder": run.name if name != run.name and run.name not in name else "",
        "colour": THEMED[RUNS[i % len(RUNS)]],
        "finished": bool(run.summary),
        "tiles": tiles,
        "notes": run.notes,
    }


def _outcome(run: Run) -> Iterable[dict[str, Any]]:
    for task, result in run.summary.get("tasks", {}).items():
        yield {
            "task": task,
            "letter": run.letter,
            "results": [
                r and {k: _percent(r[k], 1, "" if k == "low" else " %") for k in ("success", "low", "high")}
                for r in (result["before"], result["after"], result["teacher"])
            ],
            "closed": _percent(result["gap_closed"], 0),
            "episodes": _episodes(result["after"]),
        }


def _episodes(result: dict[str, Any]) -> str:
    samples = result.get("samples", 1)
    return f"{result['episodes']:.0f}" + (f" × {samples:.0f}" if samples > 1 else "")


def _alarm(run: Run, alarm: dict[str, Any]) -> dict[str, Any]:
    numbers = {k: "–" if alarm[k] is None else f"{alarm[k]:.3g}" for k in ("value", "threshold")}
    return {**alarm, **numbers, "letter": run.letter}


def _gaps(run: Run) -> Iterable[dict[str, Any]]:
    """The last table of each task, with the share of each token in the task's first table beside it."""
    for task in dict.fromkeys(table["task"] for table in run.token_gaps):
        tables = [table for table in run.token_gaps if table["task"] == task]
        before = {row["id"]: row["share"] for row in tables[0]["rows"]}
        last = tables[-1]
        most = max((row["share"] or 0.0 for row in last["rows"]), default=0.0) or 1.0
        rows = [
            {
                "text": row["text"].replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "∅",
                "special": row["special"],
                "count": f"{row['count']:,}",
                "mean": "–" if row["mean"] is None else f"{row['mean']:+.2f}".replace("-", "−"),
                "low": (row["mean"] or 0.0) < 0,
                "share": _percent(row["share"], 1),
                "width": f"{(row['share'] or 0.0) / most:.3f}",
                "before": _percent(before.get(row["id"]), 1),
            }
            for row in last["rows"]
        ]
        yield {
            **last,
            "letter": run.letter,
            "first": tables[0]["update"],
            "tokens": f"{last['tokens']:,}",
            "rows": rows,
        }


def _percent(share: float | None, digits: int, unit: str = " %") -> str:
    return "–" if share is None else f"{100 * share:.{digits}f}{unit}".replace("-", "−")
