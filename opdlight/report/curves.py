"""Figures over the updates: curves with all runs in one panel, and for each run episode endings and wall seconds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from opdlight.report.draw import BAD, COLOURS, RUNS, STATUS, Chart, canvas, chart, legend
from opdlight.report.measures import joined_alarms, smooth
from opdlight.report.read import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One panel; with `{task}` in `key`, one panel per task."""

    title: str
    key: str
    caption: str
    marks: str = ""  # another key, drawn as dots
    dashed: str = ""  # another key, drawn as a dashed line
    unit: str = ""
    share: bool = False
    log: bool = False
    agents: bool = False  # left out where every episode has one turn


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
        caption="Success of the training rollouts (line) and on held-out episodes (dots); "
        "healthy: both rise, and the dots keep up with the line.",
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
        "healthy: over 90 %, since the loss does not see the rest.",
    ),
    Curve(
        title="Overlap · {task}",
        key="coverage/overlap/{task}",
        share=True,
        caption="Share of the K best tokens that both models have in common; healthy: it rises.",
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
        key="memory/host",
        unit="GiB",
        caption="The most memory that the largest process has taken so far; healthy: it levels off.",
    ),
    Curve(
        title="Weights to the engine",
        key="publish/seconds",
        unit="seconds",
        caption="How long the weights of an update took to the engine; healthy: steady, short beside the rollout.",
    ),
)


def draw_curves(runs: Sequence[Run], tasks: Sequence[str]) -> Iterator[Chart]:
    """A chart for each panel for which a run has values, then the charts of single runs."""
    for curve in CURVES:
        for task in tasks if "{task}" in curve.key else [""]:
            keys = {n: getattr(curve, n).format(task=task) for n in ("key", "marks", "dashed")}
            values = [run.curves[k][1] for run in runs for k in (keys["key"], keys["marks"]) if k in run.curves]
            if values and not (curve.agents and max(v.max() for v in values) <= 1):
                yield _panel(curve, task, keys, runs)
    for run in runs:
        of = f" · run {run.letter}" if len(runs) > 1 else ""
        yield from _endings(run, of)
        yield from _seconds(run, of)


def _panel(curve: Curve, task: str, keys: dict[str, str], runs: Sequence[Run]) -> Chart:
    figure, axis = canvas()
    caption = curve.caption
    for i, run in enumerate(runs):
        colour = RUNS[i % len(RUNS)]
        if keys["key"] in run.curves:
            steps, values = run.curves[keys["key"]]
            line = smooth(values, max(1, len(values) // 12))
            axis.plot(steps, values, color=colour, lw=0.8, alpha=0.35)
            mark = "." if len(line) == 1 else ""  # a line of one point is not seen
            axis.plot(steps, line, mark + "-", color=colour, lw=2, label=run.letter if len(runs) > 1 else None)
        if keys["dashed"] in run.curves:
            steps, values = run.curves[keys["dashed"]]
            line = smooth(values, max(1, len(values) // 12))
            axis.plot(steps, line, color=colour, lw=1.4, ls=(0, (3, 1.6)))
        if keys["marks"] in run.curves:
            steps, values = run.curves[keys["marks"]]
            axis.plot(steps, values, "o", color=colour, ms=7, mec="#fefefe", mew=1.6, clip_on=False, zorder=5)
        for alarm in joined_alarms(run.alarms):
            if alarm["key"] in keys.values():
                end = max(alarm["until"] if alarm["until"] is not None else run.updates, alarm["update"] + 1)
                axis.axvspan(alarm["update"], end, color=colour if len(runs) > 1 else BAD, alpha=0.12, lw=0)
                caption = f"{curve.caption.removesuffix('.')} (shaded: an alarm was on)."
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
    _updates(axis, curve.unit)
    legend(axis, 8)
    return chart(f"curve {keys['key']}", curve.title.format(task=task), caption, figure)


def _updates(axis: Axes, unit: str) -> None:
    axis.set_xlabel("update")
    axis.set_ylabel(unit)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    if axis.get_yscale() == "linear":
        axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.margins(x=0.01)


def _endings(run: Run, of: str) -> Iterator[Chart]:
    found = {s: c for s, c in STATUS.items() if f"rollout/{s}" in run.curves}
    if not found:
        return
    steps = sorted({float(x) for s in found for x in run.curves[f"rollout/{s}"][0]})
    shares = []
    for status in found:
        at, values = run.curves[f"rollout/{status}"]
        shares.append(smooth(np.interp(steps, at, values), max(1, len(steps) // 12)))
    figure, axis = canvas()
    labels = [status.replace("_", " ") for status in found]
    axis.stackplot(steps, shares, colors=list(found.values()), labels=labels, lw=0.6, edgecolor="#fefefe")
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    _updates(axis, "")
    legend(axis, 3)
    caption = "How the training episodes ended, a running mean; healthy: success grows and the cut-off kinds stay thin."
    yield chart(f"endings {run.letter}", f"Endings of the episodes{of}", caption, figure)


def _seconds(run: Run, of: str) -> Iterator[Chart]:
    found = [k for k in run.curves if k.startswith("time/")]
    if not found:
        return
    found.sort(key=lambda k: -run.curves[k][1].mean())
    steps = sorted({float(x) for k in found for x in run.curves[k][0]})
    window = max(1, len(steps) // 12)
    seconds = [smooth(np.interp(steps, *run.curves[k]), window) for k in found]
    figure, axis = canvas()
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(found))]
    labels = [k.removeprefix("time/") for k in found]
    axis.stackplot(steps, seconds, colors=colours, labels=labels, lw=0.6, edgecolor="#fefefe")
    axis.set_ylim(bottom=0)
    _updates(axis, "seconds")
    legend(axis, 4)
    caption = "Wall seconds of the parts of an update, stacked, a running mean; healthy: mostly rollout, and steady."
    yield chart(f"seconds {run.letter}", f"Seconds an update{of}", caption, figure)
