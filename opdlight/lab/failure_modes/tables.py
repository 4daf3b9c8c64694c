"""The tables of the failure-mode study; captions say which of the paper's claims show."""

from collections.abc import Mapping

from opdlight.lab.failure_modes.summary import LARGE, SHARES, SIGNALS, Depth
from opdlight.lab.failure_modes.tokens import Tokens
from opdlight.metrics.intervals import Interval
from opdlight.system.console import show, table

NEGATIVE = {
    "negative": "negative rewards q(y) < π(y)",
    "negative_large": f"of those above {LARGE:g} nats in size",
    "negative_mass": "negative share of Σ|reward|",
}
SIGNAL_NAMES = {
    "reward": "|reward|",
    "sampled_gradient": "gradient norm, sampled token",
    "matching_gradient": "gradient norm, LSM",
}


def verdict(interval: Interval, *, sign: int, threshold: float = 0.0) -> str:
    """Whether an effect of this sign shows: "yes" if its 95 % interval lies beyond the threshold.

    >>> verdict(Interval(value=0.3, low=0.1, high=0.5), sign=-1)
    'the opposite'
    """
    low, high = sorted((sign * (interval.low - threshold), sign * (interval.high - threshold)))
    return "yes" if low > 0 else "the opposite" if high < 0 else "not shown"


def print_imbalance(figures: Mapping[str, Mapping[str, Interval]], tokens: Mapping[str, Tokens]) -> None:
    """Print negative rewards and concentration."""
    shown = table("task", "figure", "all tokens", *(f"top {100 * s:g} % carry" for s in SHARES))
    shown.title = "1. Imbalance of the sampled token (rollouts at top-p 1)"
    claims = []
    for task, of_task in figures.items():
        count = f"{len(tokens[task].token):,} tokens"
        for name, label in NEGATIVE.items():
            shown.add_row(task if name == "negative" else "", label, of_task[name].percent(), *("" for _ in SHARES))
        for name in SIGNALS:
            tops = [of_task[f"{name}/top_{100 * s:g}"].percent() for s in SHARES]
            shown.add_row(count if name == "reward" else "", SIGNAL_NAMES[name], "", *tops)
        less = [of_task[f"matching_less_sampled/top_{100 * s:g}"] for s in SHARES]
        shown.add_row("", "LSM less sampled token", "", *(i.percent() for i in less), end_section=True)
        most = [verdict(of_task[name], sign=1, threshold=0.5) for name in ("negative", "negative_large")]
        fewer = ", ".join(verdict(i, sign=-1) for i in less)
        claims.append(
            f"{task}: most rewards are negative: {most[0]} (of the large ones: {most[1]}); "
            f"LSM is less concentrated: {fewer} (top 1 %, 10 %)"
        )
    shown.caption = "The paper's claims. " + ". ".join(claims)
    show(shown)


def print_depth(depths: Mapping[str, Mapping[str, Depth]]) -> None:
    """Print the gap in depth, repetition and length-limit hits."""
    policies = list(next(iter(depths.values())))
    shown = table("task", "figure", *policies)
    shown.title = "2. The teacher on student prefixes: gap log π(y) − log q(y), late against early"
    claims = []
    for task, by_policy in depths.items():
        rows = {}
        for name, label in (("median", "median"), ("mean", "mean"), ("width", "10–90 % width")):
            rows[f"{label}, second half of positions − first (nats)"] = [d.widening[name] for d in by_policy.values()]
            if all(d.turn_widening for d in by_policy.values()):
                rows[f"{label}, second half of turns − first (nats)"] = [
                    d.turn_widening[name] for d in by_policy.values()
                ]
        labels = {
            "again/student": "mean log π, tokens that repeat an n-gram (nats)",
            "again/teacher": "mean log q, tokens that repeat an n-gram (nats)",
            "new/student": "mean log π, other tokens (nats)",
            "new/teacher": "mean log q, other tokens (nats)",
        }
        rows |= {label: [d.repetition[name] for d in by_policy.values()] for name, label in labels.items()}
        for i, (label, cells) in enumerate(rows.items()):
            shown.add_row(task if not i else "", label, *map(str, cells))
        shares = {
            "repetition_rate": "n-grams that occurred before",
            "cut_by_length": "trajectories with a completion cut by length",
            "success": "solved",
        }
        for name, label in shares.items():
            percentages = [d.repetition[name].percent() for d in by_policy.values()]
            shown.add_row("", label, *percentages, end_section=name == "success")
        wider = by_policy[policies[0]].widening
        claims.append(
            f"{task}: with position the gap widens: {verdict(wider['width'], sign=1)}, its mean grows: "
            f"{verdict(wider['mean'], sign=1)}"
        )
    shown.caption = "The paper's claim, at top-p 1. " + ". ".join(claims)
    show(shown)


def print_special(
    shares: Mapping[str, Mapping[str, Interval]],
    by_token: Mapping[str, Mapping[str, Mapping[str, float]]],
    arms: Mapping[str, Mapping[str, Interval]],
) -> None:
    """Print the shares of the special tokens, both models' log-probs of each, and success after distillation.

    Args:
        shares: student → figures; the last is the unchanged student.
        by_token: other student → token → means.
        arms: other student → arm → success and length-limit hits; empty if none was distilled.
    """
    shown = table("share of the special tokens", *shares)
    shown.title = "3. Special tokens that student and teacher write differently"
    names = {"tokens": "share of tokens", "reward": "share of |reward|",
             "sampled_gradient": "share of gradient norms, sampled token",
             "matching_gradient": "share of gradient norms, LSM", "mean_listed": "mean |reward| of them (nats)",
             "mean_other": "mean |reward| of other tokens (nats)", "top_1": "top 1 % of |reward|, all tokens",
             "top_1_masked": "top 1 % of |reward|, with the mask"}  # fmt: skip
    for name, label in names.items():
        cells = [s[name] for s in shares.values()]
        shown.add_row(label, *(str(c) if name.startswith("mean") else c.percent() for c in cells))
    *others, plain = shares.items()
    follows = "; ".join(
        f"{name}: {'yes' if figures_of['mean_other'].low > plain[1]['mean_other'].high else 'not shown'}"
        for name, figures_of in others
    )
    shown.caption = (
        "The mask removes the special tokens. But the teacher still reads prefixes that it would not have written: "
        f"is |reward| of other tokens, too, larger than with the plain student? {follows}"
    )
    show(shown)
    shown = table("student", "token", "count", "mean log π (nats)", "mean log q (nats)")
    for student, tokens in by_token.items():
        for token, means in sorted(tokens.items(), key=lambda item: item[1]["teacher"]):
            row = [repr(token), f"{means['count']:.0f}", f"{means['student']:.2f}", f"{means['teacher']:.2f}"]
            shown.add_row(student, *row)
    show(shown)
    for student, figures in arms.items():
        if not figures:
            continue
        shown = table("distilled by", "held-out success", "cut by length")
        shown.title = f"{student}: after a few updates; one training seed"
        for name in dict.fromkeys(n.rpartition("/")[0] for n in figures):
            shown.add_row(name, figures[f"{name}/success"].percent(), figures[f"{name}/cut_by_length"].percent())
        effects = {n: i for n, i in figures.items() if "effect" in n and n.endswith("/success")}
        shown.caption = "The paper's claim, the mask helps. " + "; ".join(
            f"{n.removesuffix('/success').partition(': ')[2]}: {verdict(i, sign=1)}" for n, i in effects.items()
        )
        show(shown)
