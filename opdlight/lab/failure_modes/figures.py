"""The figures of the failure-mode study. Colours: student blue, teacher orange, sampled token red, LSM green."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opdlight.lab.failure_modes.mismatch import TokenLogprobs
from opdlight.lab.failure_modes.summary import SHARES, SIGNALS, Bucket, Depth
from opdlight.lab.failure_modes.tokens import Tokens
from opdlight.metrics.intervals import Interval
from opdlight.system.files import replacing

STUDENT, TEACHER, SAMPLED, MATCHING, GREY = "#2a6f97", "#e08e2b", "#b23a48", "#3a7d44", "#6c757d"
POLICIES = ("#5e548e", "#2a9d8f")  # top-p 1, and a smaller top-p
SIGNAL_STYLE = {
    "reward": (GREY, "|reward|"),
    "sampled_gradient": (SAMPLED, "gradient of the sampled token"),
    "matching_gradient": (MATCHING, "gradient of LSM"),
}


def draw_imbalance(path: Path, tokens: Mapping[str, Tokens], figures: Mapping[str, Mapping[str, Interval]]) -> None:
    """Draw `imbalance.png`: both models' probability of each sampled token, and how concentrated each signal is."""
    figure, axes = plt.subplots(len(tokens), 2, figsize=(12.5, 5.2 * len(tokens)), layout="constrained", squeeze=False)
    for row, (task, of_task) in zip(axes, tokens.items(), strict=True):
        pi, q, negative = of_task.log_pi.exp().numpy(), of_task.log_q.exp().numpy(), (of_task.reward < 0).numpy()
        for below, colour, name in ((False, MATCHING, "q ≥ π: rewarded"), (True, SAMPLED, "q < π: punished")):
            at = negative == below
            row[0].scatter(pi[at], q[at], s=7, alpha=0.35, lw=0, color=colour, rasterized=True, label=name)
        row[0].plot([0, 1], [0, 1], color="black", lw=0.9)
        row[0].set(
            title=f"{task}: {len(pi):,} sampled tokens, {figures[task]['negative'].percent()} punished",
            xlabel="student probability π(y)",
            ylabel="teacher probability q(y)",
            aspect="equal",
        )
        legend = row[0].legend(markerscale=3, loc="upper left", framealpha=0.95)
        for handle in legend.legend_handles:
            handle.set_alpha(1)
        _concentration(row[1], of_task, figures[task])
        row[1].set_title(f"{task}: who carries the signal?")
    figure.suptitle("Imbalance: few sampled tokens carry the signal", fontweight="bold")
    _save(figure, path)


def _concentration(axis: Axes, tokens: Tokens, figures: Mapping[str, Interval]) -> None:
    for name, (colour, label) in SIGNAL_STYLE.items():
        sizes = np.sort(SIGNALS[name](tokens).abs().numpy())[::-1]
        part = np.arange(1, len(sizes) + 1) / len(sizes)
        axis.plot(100 * part, 100 * np.cumsum(sizes) / sizes.sum(), color=colour, lw=2, label=label)
        for share in SHARES:
            top = figures[f"{name}/top_{100 * share:g}"]
            _bar(axis, 100 * share, top, colour, scale=100)
    even = np.geomspace(0.1, 100, 50)
    axis.plot(even, even, color="black", ls=":", lw=1, label="all tokens alike")
    axis.set(
        xscale="log", xlim=(0.1, 100), ylim=(0, 102), xlabel="top tokens (%)", ylabel="their share of the total (%)"
    )
    axis.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    axis.grid(alpha=0.3)
    axis.legend(loc="upper left", framealpha=0.95)


def draw_depth(path: Path, depths: Mapping[str, Mapping[str, Depth]]) -> None:
    """Draw `depth.png`: for each task the gap by position and by turn, and repetition, under two rollout policies."""
    figure, axes = plt.subplots(
        len(depths),
        3,
        figsize=(16, 4.6 * len(depths)),
        layout="constrained",
        squeeze=False,
        gridspec_kw={"width_ratios": [1.3, 1.3, 1]},
    )
    for row, (task, policies) in zip(axes, depths.items(), strict=True):
        for number, (policy, depth) in enumerate(policies.items()):
            colour, aside = POLICIES[number], 0.15 * (number - 0.5)  # an offset, so that intervals do not overlap
            positions, turns = depth.by_position, depth.by_turn
            at = [b.start + (0.5 + aside) * (b.end - b.start) for b in positions]
            _gap(row[0], positions, at, colour, policy)
            if len(turns) > 1:
                _gap(row[1], turns, [b.start + 1 + aside for b in turns], colour, policy)
        row[0].set(title=f"{task}: by position", xlabel="student tokens before, in the trajectory")
        row[0].set_ylabel("gap log π(y) − log q(y) (nats)")
        row[0].legend(title="median; band: 10–90 %", loc="best", framealpha=0.95)
        if all(len(depth.by_turn) > 1 for depth in policies.values()):
            row[1].set(title=f"{task}: by turn", xlabel="turn")
        else:
            row[1].set_axis_off()
            row[1].text(0.5, 0.5, "single turn", transform=row[1].transAxes, ha="center", color=GREY)
        _counts(row[2], policies)
        row[2].set_title(f"{task}: repetition and limits")
    figure.suptitle("Does the teacher become unreliable in depth?", fontweight="bold")
    _save(figure, path)


def _gap(axis: Axes, buckets: Sequence[Bucket], at: Sequence[float], colour: str, label: str) -> None:
    """Draw quantiles of the gap in buckets with more than one trajectory."""
    shown = [b for b in buckets if b.trajectories > 1]
    x = np.array([place for place, b in zip(at, buckets, strict=True) if b.trajectories > 1])
    low, middle, high = (np.array([b.quantiles[i].value for b in shown]) for i in range(3))
    axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    axis.plot(x, low, color=colour, lw=0.8, alpha=0.6)
    axis.plot(x, high, color=colour, lw=0.8, alpha=0.6)
    axis.plot(x, middle, color=colour, lw=2, label=label)
    for place, bucket in zip(x, shown, strict=True):
        for interval in bucket.quantiles:
            _bar(axis, float(place), interval, colour, size=2.5)
    axis.axhline(0, color="black", lw=0.8)
    axis.grid(alpha=0.3)


def _counts(axis: Axes, policies: Mapping[str, Depth]) -> None:
    names = {"repetition_rate": "repeated\n4-grams", "cut_by_length": "cut by\nlength", "success": "solved"}
    for offset, colour, (policy, depth) in zip((-0.19, 0.19), POLICIES, policies.items(), strict=True):
        for i, name in enumerate(names):
            interval = depth.repetition[name]
            axis.bar(i + offset, 100 * interval.value, 0.36, color=colour, alpha=0.75, label=policy if not i else None)
            _bar(axis, i + offset, interval, "black", scale=100, size=0)
    axis.set_xticks(range(len(names)), list(names.values()))
    axis.set_ylabel("share (%)")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3, axis="y")
    axis.legend(framealpha=0.95)


def draw_special(
    path: Path,
    text: Sequence[TokenLogprobs],
    shares: Mapping[str, Mapping[str, Interval]],
    arms: Mapping[str, Mapping[str, Interval]],
) -> None:
    """Draw `special_tokens.png`: one text token by token, the share of the special tokens, success after training."""
    figure = plt.figure(figsize=(15, 9), layout="constrained")
    halves = figure.subfigures(2, 1, height_ratios=[1.15, 1], squeeze=False)
    top, bottom = halves[:, 0]
    axis = top.subplots()
    x = np.arange(len(text))
    axis.bar(x - 0.2, [t.student for t in text], 0.4, color=STUDENT, label="student log π(y)")
    axis.bar(x + 0.2, [t.teacher for t in text], 0.4, color=TEACHER, label="teacher log q(y)")
    for i in (i for i, t in enumerate(text) if t.listed):
        axis.axvspan(i - 0.5, i + 0.5, color=SAMPLED, alpha=0.12, lw=0, label=None)
    axis.bar(0, 0, color=SAMPLED, alpha=0.2, label="left out by the mask")
    axis.set_xticks(x, [t.text.replace(" ", "␣").replace("$", "\\$") for t in text], rotation=60, family="monospace")
    axis.set(
        ylabel="log-probability (nats)", xlim=(-0.7, len(text) - 0.3), title="one text of the student, token by token"
    )
    axis.grid(alpha=0.3, axis="y")
    axis.legend(loc="lower center", ncols=3, framealpha=0.95)
    panels = bottom.subplots(1, 2, squeeze=False)
    left, right = panels[0]
    names = {"tokens": "tokens", "reward": "|reward|", "sampled_gradient": "gradient of the\nsampled token",
             "matching_gradient": "gradient\nof LSM"}  # fmt: skip
    width = 0.76 / len(shares)
    for number, (student, figures) in enumerate(shares.items()):
        offset = width * (number - (len(shares) - 1) / 2)
        last = number == len(shares) - 1  # the plain student, for comparison
        style: dict[str, Any] = {
            "color": GREY if last else SAMPLED,
            "alpha": 0.8 if last else 0.45 + 0.4 * (number > 0),
        }
        for i, name in enumerate(names):
            left.bar(i + offset, 100 * figures[name].value, 0.95 * width, label=None if i else student, **style)
            _bar(left, i + offset, figures[name], "black", scale=100, size=0)
    left.set_xticks(range(len(names)), list(names.values()))
    left.set(ylabel="share of the special tokens (%)", title="what the special tokens carry (the mask removes it)")
    left.grid(alpha=0.3, axis="y")
    left.set_ylim(top=1.25 * left.get_ylim()[1])  # room for the legend
    left.legend(loc="upper right", framealpha=0.95)
    _success(right, arms)
    figure.suptitle("Special tokens that student and teacher write differently", fontweight="bold")
    _save(figure, path)


def _success(axis: Axes, arms: Mapping[str, Mapping[str, Interval]]) -> None:
    """Draw a group of bars for each student, with one bar for each arm."""
    at, labels = 0.0, []
    for student, figures in arms.items():
        shown = {n.removesuffix("/success"): i for n, i in figures.items() if n.endswith("/success")}
        shown = {n: i for n, i in shown.items() if "effect" not in n}
        if not shown:
            axis.set_axis_off()
            return
        start = at
        for name, interval in shown.items():
            colour = GREY if name == "start" else SAMPLED if name.startswith("sampled") else MATCHING
            axis.bar(at, 100 * interval.value, 0.8, color=colour, alpha=1.0 if "mask" in name else 0.55)
            _bar(axis, at, interval, "black", scale=100, size=0)
            labels.append((at, name.replace("sampled token", "ST").replace(" + ", "\n+ ")))
            at += 1
        axis.text((start + at - 1) / 2, 104, student, ha="center")
        at += 0.7
    axis.set_xticks([x for x, _ in labels], [label for _, label in labels], fontsize=8)
    axis.set(ylabel="held-out success (%)", ylim=(0, 112), title="after a few updates, without and with the mask")
    axis.grid(alpha=0.3, axis="y")


def _bar(axis: Axes, x: float, interval: Interval, colour: str, *, scale: float = 1.0, size: float = 4) -> None:
    """Draw a 95 % interval as an error bar."""
    value, low, high = scale * interval.value, scale * interval.low, scale * interval.high
    error = [[max(value - low, 0)], [max(high - value, 0)]]
    axis.errorbar([x], [value], yerr=error, fmt="o", ms=size, color=colour, capsize=3, lw=1.2)


def _save(figure: Figure, path: Path) -> None:
    """Write the figure atomically and close it."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)
