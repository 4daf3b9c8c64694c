"""The figure of early signs: how strongly each figure at a third of a run goes with its end."""

from collections.abc import Iterator, Sequence

from opdlight.report.arms.early_signs import Sign
from opdlight.report.draw import MUTED, STUDENT, Chart, canvas, chart

SHOWN = 24  # figures of a task, the strongest


def draw_signs(signs: Sequence[Sign]) -> Iterator[Chart]:
    """One chart a setting and task."""
    for setting, task in dict.fromkeys((sign.setting, sign.task) for sign in signs):
        mine = [sign for sign in signs if (sign.setting, sign.task) == (setting, task)]
        figure, axis = canvas(7.6, 0.7 + 0.22 * min(len(mine), SHOWN))
        axis.axvline(0, color=MUTED, lw=1)
        for place, sign in enumerate(mine[:SHOWN]):
            s = sign.strength
            axis.plot([s.low, s.high], [place, place], color=STUDENT, lw=1.8, alpha=0.75)
            axis.plot([s.value], [place], "o", ms=5, color=STUDENT, mfc=STUDENT if s.low * s.high > 0 else "#fefefe")
        axis.set_yticks(range(len(mine[:SHOWN])), [f"{sign.figure} ({sign.kind})" for sign in mine[:SHOWN]])
        axis.set(xlim=(-1, 1), ylim=(len(mine[:SHOWN]) - 0.5, -0.5), xlabel="rank correlation with success at the end")
        caption = (
            f"How strongly a figure at a third of a run goes with held-out success on {task} at its end, over "
            f"{mine[0].runs} runs of {mine[0].arms} arms: Spearman's ρ with 95 % intervals (bootstrap over arms and "
            "seeds); hollow where the interval holds 0. Level: the mean over the second half of the first third; "
            "change: that minus the mean over the first half. "
            f"The strongest {min(len(mine), SHOWN)} of {len(mine)}; signs.csv has all."
        )
        yield chart(f"signs-{setting}-{task}", f"Early signs · {setting}, {task}", caption, figure, wide=True)
