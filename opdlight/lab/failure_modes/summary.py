"""The figures of the first two failure modes with their intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from opdlight.lab.bootstrap import bootstrap
from opdlight.lab.failure_modes.tokens import Tokens
from opdlight.metrics.intervals import Interval
from opdlight.metrics.tokens import quantiles_by_bucket, repetition_rate, top_share
from opdlight.types import Status, Trajectory

if TYPE_CHECKING:
    from omegaconf import DictConfig

SHARES = (0.01, 0.1)  # top 1 % and top 10 % of the tokens
LARGE = 0.1  # nats; where |reward| is smaller, both models are certain and the sign means nothing
QUANTILES = (0.1, 0.5, 0.9)
SIGNALS: dict[str, Callable[[Tokens], Tensor]] = {
    "reward": lambda t: t.reward,
    "sampled_gradient": lambda t: t.sampled_gradient,
    "matching_gradient": lambda t: t.matching_gradient,
}


def imbalance(tokens: Tokens, *, draws: int, seed: int) -> dict[str, Interval]:
    """Shares of negative rewards, and the shares of each signal that the top 1 % and 10 % of the tokens carry.

    `negative`: share of tokens. `negative_large`: the same among tokens with |reward| > `LARGE`. `negative_mass`: share
    of Σ|reward|. `matching_less_sampled/top_…`: the share for support matching minus that for the sampled token, on the
    same resamples; negative where support matching is less concentrated.
    """
    signals = {name: signal(tokens) for name, signal in SIGNALS.items()}
    names = ["negative", "negative_large", "negative_mass"] + [
        f"{name}/top_{100 * share:g}" for name in signals for share in SHARES
    ]
    names += [f"matching_less_sampled/top_{100 * share:g}" for share in SHARES]

    def figures(at: Tensor) -> Tensor:
        tops = {n: [top_share(values[at], share) for share in SHARES] for n, values in signals.items()}
        less = [m - s for m, s in zip(tops["matching_gradient"], tops["sampled_gradient"], strict=True)]
        reward = tokens.reward[at]
        negative = (reward < 0).float()
        large = reward.abs() > LARGE
        counts = [negative.mean(), negative[large].mean(), -reward.clamp(max=0.0).sum() / reward.abs().sum()]
        return torch.stack([*counts, *(x for pair in tops.values() for x in pair), *less])

    return dict(zip(names, bootstrap(figures, tokens.trajectory, draws=draws, seed=seed), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """The gap log π(y) − log q(y) of the tokens whose position (or turn) lies in [start, end)."""

    start: int
    end: int
    tokens: int
    trajectories: int
    quantiles: list[Interval]  # for QUANTILES, in nats


def by_bucket(gap: Tensor, at: Tensor, edges: Sequence[int], tokens: Tokens, *, draws: int, seed: int) -> list[Bucket]:
    """Quantiles of the gap [N] by bucket of `at` [N], which are positions or turn numbers; `edges` are the buckets'."""
    bucket = torch.bucketize(at, torch.tensor(edges[1:]), right=True)
    count = len(edges) - 1

    def figures(places: Tensor) -> Tensor:
        return quantiles_by_bucket(gap[places], bucket[places], count, QUANTILES).flatten()

    flat = bootstrap(figures, tokens.trajectory, draws=draws, seed=seed)
    return [
        Bucket(
            start=edges[b],
            end=edges[b + 1],
            tokens=int((bucket == b).sum()),
            trajectories=len(tokens.trajectory[bucket == b].unique()),
            quantiles=flat[len(QUANTILES) * b : len(QUANTILES) * (b + 1)],
        )
        for b in range(count)
    ]


def widening(tokens: Tokens, at: Tensor, middle: int, *, draws: int, seed: int) -> dict[str, Interval]:
    """Change of the gap's median, mean and 10–90 % width from `at` < `middle` to `at` ≥ `middle`, in nats."""
    late = (at >= middle).long()
    gap = -tokens.reward

    def figures(places: Tensor) -> Tensor:
        early, later = quantiles_by_bucket(gap[places], late[places], 2, QUANTILES)
        mean = [gap[places][late[places] == half].mean() for half in (0, 1)]
        return torch.stack([later[1] - early[1], mean[1] - mean[0], (later[2] - later[0]) - (early[2] - early[0])])

    return dict(
        zip(("median", "mean", "width"), bootstrap(figures, tokens.trajectory, draws=draws, seed=seed), strict=True)
    )


def repetition(
    tokens: Tokens, trajectories: Sequence[Trajectory], *, ngram: int, draws: int, seed: int
) -> dict[str, Interval]:
    """Repetition rate, length-limit hits and success; both models' mean log-probs of repeating and of other tokens."""
    rate = torch.tensor([repetition_rate([turn.completion_ids for turn in t.turns], ngram) for t in trajectories])
    cut = torch.tensor([any(turn.finish_reason == "length" for turn in t.turns) for t in trajectories]).float()
    solved = torch.tensor([t.status is Status.SUCCESS for t in trajectories]).float()
    shares = torch.stack([rate, cut, solved], 1)
    names = ("repetition_rate", "cut_by_length", "success")
    found = bootstrap(lambda at: shares[at].nanmean(0), torch.arange(len(trajectories)), draws=draws, seed=seed)

    def figures(at: Tensor) -> Tensor:
        repeats = tokens.repeats[at]
        parts = [values[at][mask] for mask in (repeats, ~repeats) for values in (tokens.log_pi, tokens.log_q)]
        return torch.stack([p.mean() for p in parts])

    means = ("again/student", "again/teacher", "new/student", "new/teacher")
    logprobs = bootstrap(figures, tokens.trajectory, draws=draws, seed=seed)
    return dict(zip(names, found, strict=True)) | dict(zip(means, logprobs, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """The second failure mode for one task under one rollout policy."""

    by_position: list[Bucket]
    by_turn: list[Bucket]
    widening: dict[str, Interval]  # second half of the positions against the first
    turn_widening: dict[str, Interval]  # second half of the turns; empty for single-turn tasks
    repetition: dict[str, Interval]


def depth(
    cfg: "DictConfig", tokens: Tokens, trajectories: Sequence[Trajectory], edges: Sequence[int], turns: int
) -> Depth:
    """Measure the second failure mode; use the same `edges` of positions and number of `turns` for all policies."""
    ask = {"draws": cfg.draws, "seed": cfg.seed}
    gap = -tokens.reward
    several = turns > 1
    return Depth(
        by_position=by_bucket(gap, tokens.position, edges, tokens, **ask),
        by_turn=by_bucket(gap, tokens.turn, range(turns + 1), tokens, **ask),
        widening=widening(tokens, tokens.position, edges[len(edges) // 2], **ask),
        turn_widening=widening(tokens, tokens.turn, (turns + 1) // 2, **ask) if several else {},
        repetition=repetition(tokens, trajectories, ngram=cfg.ngram, **ask),
    )


def edges_of(tokens: Sequence[Tokens], buckets: int) -> list[int]:
    """Edges of at most `buckets` buckets of equal width that cover every position of every policy."""
    longest = int(max(t.position.max() for t in tokens)) + 1
    width = -(-longest // buckets)
    return list(range(0, longest + width, width))
