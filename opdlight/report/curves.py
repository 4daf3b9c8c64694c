"""Figures over the updates: curves with all runs in one panel, and for each run episode endings and wall seconds.

A figure that mixes tasks, such as the length of a turn, is drawn by task where they come in turn: it would zig-zag.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from opdlight.report.draw import BAD, COLOURS, RUNS, STATUS, Chart, canvas, chart, legend
from opdlight.report.measures import joined_alarms, points_of, smooth, updates_by_task
from opdlight.report.read import Curves, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One panel; with `{task}` in `key`, and of a figure that mixes tasks, one panel per task."""

    title: str
    key: str
    caption: str
    marks: str = ""  # another key, drawn as dots
    dashed: str = ""  # another key, drawn as a dashed line
    unit: str = ""
    share: bool = False
    log: bool = False
    agents: bool = False  # left out where every episode has one turn
    mixes: bool = True  # depends on which tasks an update has


CURVES = (
    Curve(
        title="Loss",
        key="loss/train",
        unit="nats",
        caption="The objective of each update (thin) and its running mean (thick); healthy: it falls, then levels off.",
    ),
    Curve(
        title="Success · {task}",
        key="rollout/success/{task}",
        marks="val/success/{task}",
        share=True,
        caption="Success of the training rollouts (line) and on held-out episodes (dots), which should keep up; "
        "healthy: it rises, and at a third of a run held-out success is the best sign of its end.",
    ),
    Curve(
        title="KL student‖teacher · {task}",
        key="kl/k3/{task}",
        unit="nats a token",
        caption="Distance of the student from its teacher at the sampled tokens (k3 estimate); healthy: it falls.",
    ),
    Curve(
        title="Coverage · {task}",
        key="coverage/student_mass/{task}",
        dashed="coverage/sampled_in_support/{task}",
        share=True,
        caption="Student probability on the teacher's top-K (solid) and share of sampled tokens inside it (dashed); "
        "healthy: over 90 % and not falling, since a renormalised loss does not see the rest.",
    ),
    Curve(
        title="Overlap · {task}",
        key="coverage/overlap/{task}",
        share=True,
        caption="Share of the K best tokens that both models have in common; healthy: up or down, no sign of the "
        "end was found in it.",
    ),
    Curve(
        title="Gradient norm",
        key="optimizer/grad_norm",
        log=True,
        caption="Norm of the gradient before clipping, on a logarithmic scale; healthy: a band without lone spikes.",
    ),
    Curve(
        title="Length of a turn",
        key="rollout/completion_tokens",
        unit="tokens",
        caption="Mean completion tokens of a turn; healthy: steady, or turns will get cut off.",
    ),
    Curve(
        title="Turns of an episode · {task}",
        key="rollout/turns/{task}",
        unit="turns",
        agents=True,
        caption="Mean number of turns of an episode; healthy for agents: it falls while success rises.",
    ),
    Curve(
        title="Wasted actions · {task}",
        key="rollout/wasted_actions/{task}",
        marks="val/wasted_actions/{task}",
        share=True,
        caption="Share of the actions that did nothing, because none could be read, it was not possible there, or it "
        "changed nothing, in training rollouts (line) and on held-out episodes (dots); healthy: it falls.",
    ),
    Curve(
        title="Admissible actions · {task}",
        key="rollout/admissible_actions/{task}",
        marks="val/admissible_actions/{task}",
        share=True,
        caption="Share of the actions that were possible where they were taken, in training rollouts (line) and on "
        "held-out episodes (dots); healthy: it rises.",
    ),
    Curve(
        title="Engine against trainer · {task}",
        key="mismatch/k1/{task}",
        unit="nats",
        caption="Mean log-ratio of the engine's and the trainer's probability of a token; healthy: below 0.01.",
    ),
    Curve(
        title="Speed",
        key="throughput/rollout",
        dashed="throughput/train",
        unit="tokens/s",
        caption="Tokens generated per second of the rollout (solid) and trained per second of everything else "
        "(dashed), of all ranks; healthy: steady.",
    ),
    Curve(
        title="Use of the GPUs",
        key="throughput/mfu",
        share=True,
        caption="What the models' layers cost, by what the GPUs could do in the time of all but the rollout (MFU); "
        "healthy: 20 to 50 % with long rows.",
    ),
    Curve(
        title="Balance of the ranks",
        key="throughput/rank_imbalance",
        unit="busiest rank ÷ mean",
        caption="Tokens that the busiest rank computed, by the mean of all; healthy: below 1.1, or the others wait.",
    ),
    Curve(
        title="Memory of a GPU",
        key="memory/gpu",
        unit="GiB",
        caption="The most memory that tensors took on the fullest GPU in an update; healthy: steady, below the GPU's.",
    ),
    Curve(
        title="Memory of a process",
        mixes=False,
        key="memory/host",
        unit="GiB",
        caption="The most memory that the largest process has taken so far; healthy: it levels off.",
    ),
    Curve(
        title="Weights to the engine",
        mixes=False,
        key="publish/seconds",
        unit="seconds",
        caption="How long the weights of an update took to the engine; healthy: steady, short beside the rollout.",
    ),
)


def draw_curves(runs: Sequence[Run], tasks: Sequence[str]) -> Iterator[Chart]:
    """A chart for each panel for which a run has values, then the charts of single runs."""
    for curve in CURVES:
        for task in panels(curve, [run.curves for run in runs], tasks):
            keys = {n: getattr(curve, n).format(task=task) for n in ("key", "marks", "dashed")}
            of_task = "" if "{task}" in curve.key else task
            points = [{k: p for k in keys.values() if (p := points_of(run.curves, k, of_task))} for run in runs]
            values = [p[k][1] for p in points for k in (keys["key"], keys["marks"]) if k in p]
            if values and not (curve.agents and max(v.max() for v in values) <= 1):
                title = curve.title.format(task=task) + (f" · {of_task}" if of_task else "")
                yield _panel(curve, of_task, title, keys, list(zip(runs, points, strict=True)))
    for run in runs:
        of = f" · run {run.letter}" if len(runs) > 1 else ""
        found = list(updates_by_task(run.curves))
        for task in found if len(found) > 1 else [""]:
            yield from _endings(run, task, f" · {task}{of}" if task else of)
            yield from _seconds(run, task, f" · {task}{of}" if task else of)


def panels(curve: Curve, runs: Sequence[Curves], tasks: Sequence[str]) -> Sequence[str]:
    """The tasks of a curve's panels; "" where one panel is for all of them."""
    if "{task}" in curve.key:
        return tasks
    found = [updates_by_task(curves) for curves in runs]
    named = [task for task in tasks if any(task in by_task for by_task in found)]
    return named if curve.mixes and all(found) and len(named) > 1 else [""]


def _panel(curve: Curve, of_task: str, title: str, keys: dict[str, str], runs: Sequence[tuple[Run, Curves]]) -> Chart:
    figure, axis = canvas()
    caption = curve.caption
    for i, (run, points) in enumerate(runs):
        colour = RUNS[i % len(RUNS)]
        if keys["key"] in points:
            steps, values = points[keys["key"]]
            line = smooth(values, max(1, len(values) // 12))
            axis.plot(steps, values, color=colour, lw=0.8, alpha=0.35)
            mark = "." if len(line) == 1 else ""  # a line of one point is not seen
            axis.plot(steps, line, mark + "-", color=colour, lw=2, label=run.letter if len(runs) > 1 else None)
        if keys["dashed"] in points:
            steps, values = points[keys["dashed"]]
            line = smooth(values, max(1, len(values) // 12))
            axis.plot(steps, line, color=colour, lw=1.4, ls=(0, (3, 1.6)))
        if keys["marks"] in points:
            steps, values = points[keys["marks"]]
            axis.plot(steps, values, "o", color=colour, ms=7, mec="#fefefe", mew=1.6, clip_on=False, zorder=5)
        for alarm in joined_alarms(run.alarms):
            if alarm["key"] in keys.values():
                end = max(alarm["until"] if alarm["until"] is not None else run.updates, alarm["update"] + 1)
                axis.axvspan(alarm["update"], end, color=colour if len(runs) > 1 else BAD, alpha=0.12, lw=0)
                caption = f"{curve.caption.removesuffix('.')} (shaded: an alarm was on)."
    set_scale(axis, curve)
    over_updates(axis, curve.unit)
    legend(axis, 8)
    return chart(f"curve {keys['key']} {of_task}".strip(), title, caption, figure)


def set_scale(axis: Axes, curve: Curve) -> None:
    """The scale of the values: logarithmic, in percent, from 0."""
    if curve.log and axis.dataLim.y1 > 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(numticks=6))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    if curve.share:
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        if "success" in curve.key:
            axis.set_ylim(-0.02, 1.02)
    if curve.agents:
        axis.set_ylim(bottom=0)


def over_updates(axis: Axes, unit: str) -> None:
    """Label and tick the axes of a figure over the updates."""
    axis.set_xlabel("update")
    axis.set_ylabel(unit)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    if axis.get_yscale() == "linear":
        axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.margins(x=0.01)


def _endings(run: Run, task: str, of: str) -> Iterator[Chart]:
    found = {s: p for s in STATUS if (p := points_of(run.curves, f"rollout/{s}", task))}
    if not found:
        return
    steps = sorted({float(x) for at, _ in found.values() for x in at})
    shares = [smooth(np.interp(steps, *points), max(1, len(steps) // 12)) for points in found.values()]
    figure, axis = canvas()
    labels = [status.replace("_", " ") for status in found]
    axis.stackplot(steps, shares, colors=[STATUS[s] for s in found], labels=labels, lw=0.6, edgecolor="#fefefe")
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    over_updates(axis, "")
    legend(axis, 3)
    caption = "How the training episodes ended, a running mean; healthy: success grows and the cut-off kinds stay thin."
    yield chart(f"endings {run.letter} {task}", f"Endings of the episodes{of}", caption, figure)


def _seconds(run: Run, task: str, of: str) -> Iterator[Chart]:
    found = {k: p for k in run.curves if k.startswith("time/") and (p := points_of(run.curves, k, task))}
    if not found:
        return
    names = sorted(found, key=lambda k: -float(found[k][1].mean()))
    steps = sorted({float(x) for at, _ in found.values() for x in at})
    window = max(1, len(steps) // 12)
    seconds = [smooth(np.interp(steps, *found[k]), window) for k in names]
    figure, axis = canvas()
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(names))]
    labels = [k.removeprefix("time/") for k in names]
    axis.stackplot(steps, seconds, colors=colours, labels=labels, lw=0.6, edgecolor="#fefefe")
    axis.set_ylim(bottom=0)
    over_updates(axis, "seconds")
    legend(axis, 4)
    caption = "Wall seconds of the parts of an update, stacked, a running mean; healthy: mostly rollout, and steady."
    yield chart(f"seconds {run.letter} {task}", f"Seconds an update{of}", caption, figure)
