"""Pure metric functions, and the glossary of every key that a run logs."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.table import Column
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from opdlight.console import show, table
from opdlight.types import Status, Support, Trajectory


def wilson_interval(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a proportion, 95 % by default (Wilson 1927).

    >>> low, high = wilson_interval(50, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    if n <= 0:
        raise ValueError(f"Expected argument `n` to be positive, but got {n}.")
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def success_interval(per_episode: Sequence[Sequence[float]]) -> tuple[float, tuple[float, float]]:
    """Mean success over episodes × samples and its 95 % interval, the episode as the unit (samples of one are tied).

    One sample an episode: Wilson. More (avg@n): Wilson at the effective number of episodes m = p(1−p) / s², where s² is
    the variance of the mean over episodes; so repeated samples of one episode count as what they add.
    """
    means = [sum(e) / len(e) for e in per_episode]
    n, p = len(means), sum(means) / len(means)
    variance = sum((m - p) ** 2 for m in means) / max(n - 1, 1) / n
    effective = n if variance == 0 or max(map(len, per_episode)) == 1 else max(1, round(p * (1 - p) / variance))
    return p, wilson_interval(p * effective, effective)


def pass_at_k(attempts: int, solved: int, k: int) -> float:
    """Chance that at least one of k attempts solves an episode, 1 − C(n−c, k) / C(n, k), unbiased for n ≥ k attempts.

    Chen et al. 2021 (arXiv 2107.03374), Eq. 1.

    >>> pass_at_k(4, 2, 1), round(pass_at_k(4, 2, 2), 4), pass_at_k(4, 2, 4)
    (0.5, 0.8333, 1.0)
    """
    if not 1 <= k <= attempts or not 0 <= solved <= attempts:
        raise ValueError(f"Expected 1 ≤ k ≤ n and 0 ≤ c ≤ n, but got n={attempts}, c={solved}, k={k}.")
    return 1.0 - math.comb(attempts - solved, k) / math.comb(attempts, k)


def outcome_rows(trajectories: Sequence[Trajectory]) -> Tensor:
    """Seed, 1 for success else 0, and reward of each trajectory, [n, 3] in float64 (which holds every seed exactly)."""
    rows = [[t.seed, float(t.status is Status.SUCCESS), t.reward] for t in trajectories]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Success on held-out episodes."""

    success: float  # mean over episodes of the mean over their samples: pass@1, or avg@n with n samples
    low: float  # 95 % interval, the episode as the unit
    high: float
    pass_at: dict[int, float]  # k → share of episodes solved by at least one of k samples; 1, 2, 4, … and all of them
    episodes: int  # different ones
    samples: int  # of each episode; the fewest, where an episode comes more often than another
    reward: float

    @classmethod
    def of(cls, trajectories: Sequence[Trajectory]) -> "Result":
        """Summarise the trajectories of one task; those with the same seed are samples of one episode."""
        return cls.of_rows(outcome_rows(trajectories))

    @classmethod
    def of_rows(cls, rows: Tensor) -> "Result":
        """The same from `outcome_rows`, in any order."""
        episodes: dict[float, list[tuple[float, float]]] = {}
        for seed, solved_it, reward in sorted(rows.tolist()):
            episodes.setdefault(seed, []).append((solved_it, reward))
        solved = [[s for s, _ in e] for e in episodes.values()]
        success, (low, high) = success_interval(solved)
        samples = min(map(len, solved))
        ks = sorted({*(2**i for i in range(samples.bit_length())), samples})
        rewards = [sum(reward for _, reward in e) / len(e) for e in episodes.values()]
        return cls(
            success=success,
            low=low,
            high=high,
            pass_at={k: sum(pass_at_k(len(e), int(sum(e)), k) for e in solved) / len(solved) for k in ks},
            episodes=len(episodes),
            samples=samples,
            reward=sum(rewards) / len(rewards),
        )

    @property
    def title(self) -> str:
        """What `success` is called."""
        return "pass@1" if self.samples == 1 else f"avg@{self.samples}"

    def __str__(self) -> str:
        return f"{100 * self.success:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


class HeldOutOutcomes(Metric):
    """Outcomes of one task's held-out episodes: each rank updates with its own, `compute` gathers those of all."""

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, trajectories: Sequence[Trajectory]) -> None:
        """Add trajectories; a rank without any adds none."""
        self.rows.append(outcome_rows(trajectories).to(self.device))

    def compute(self) -> Tensor:
        """`outcome_rows` of every rank, for `Result.of_rows`."""
        return dim_zero_cat(self.rows)


def teacher_mass(support: Support) -> Tensor:
    """Coverage: Σ_{v∈S} q(v), [N], in [0, 1]."""
    return support.teacher_logprobs.exp().masked_fill(~support.valid, 0.0).sum(-1)


def student_mass(student_logits: Tensor, normaliser: Tensor, valid: Tensor) -> Tensor:
    """Σ_{v∈S} π(v), [N], in [0, 1]; 1 minus it is what a renormalised loss does not see. z [N, K], log-sum [N]."""
    return (student_logits - normaliser[:, None]).exp().masked_fill(~valid, 0.0).sum(-1)


def sampled_in_support(support: Support, target_ids: Tensor) -> Tensor:
    """1 where the student's token lies in S, [N]."""
    return ((support.token_ids == target_ids[:, None]) & support.valid).any(-1).float()


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """|A ∩ B| / K of two sets of K distinct ids, [N]. Arguments [N, K]."""
    return (a[:, :, None] == b[:, None, :]).any(-1).float().mean(-1)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a logged key means."""

    meaning: str
    unit: str
    estimator: str
    healthy: str


GLOSSARY: dict[str, Entry] = {
    "loss/train": Entry("value of the objective", "nats", "token mean over the whole batch", "falls"),
    "rollout/reward/{task}": Entry("environment reward", "reward", "mean over trajectories", "rises"),
    "rollout/success/{task}": Entry("solved episodes", "share", "mean over trajectories", "rises"),
    "rollout/turns/{task}": Entry("turns of an episode", "turns", "mean over trajectories", "agents: falls"),
    "rollout/success": Entry("status: solved", "share", "all trajectories of the batch", "rises"),
    "rollout/failure": Entry("status: ended unsolved", "share", "all trajectories", "falls"),
    "rollout/truncated_turns": Entry("status: cut by the turn limit", "share", "all trajectories", "falls"),
    "rollout/truncated_tokens": Entry("status: cut by the token limit", "share", "all trajectories", "under 0.05"),
    "rollout/env_error": Entry("status: the environment raised", "share", "all trajectories", "0"),
    "rollout/completion_tokens": Entry("length of a turn's completion", "tokens", "mean over turns", "steady"),
    "rollout/cut_by_length/{task}": Entry(
        "trajectories with a completion that hit the length limit", "share", "mean over trajectories", "under 0.1"
    ),
    "rollout/repetition/{task}": Entry(
        "4-grams of tokens that the trajectory held before", "share", "mean over trajectories", "steady; see the task"
    ),
    "rollout/staleness": Entry(
        "updates between the student that rolled out and the one that learns",
        "updates",
        "mean over turns",
        "0; 1 with staleness: 1",
    ),
    "rollout/row_splits": Entry("extra rows because the rendered history was rewritten", "rows", "sum", "0 or steady"),
    "data/epoch/{task}": Entry(
        "passes over the training rows, where an environment has rows", "epochs", "exact", "few"
    ),
    "rollout/spelled_control_tokens": Entry(
        "control tokens that text of environments spelled (<|im_end|> in an observation), encoded as ordinary text",
        "tokens",
        "sum",
        "0, or as many as the prompts name on purpose",
    ),
    "rollout/unshared_tokens": Entry(
        "sampled tokens that carry no loss because a teacher lacks their id or means another token by it",
        "tokens",
        "sum over the trajectories of all ranks",
        "0, or next to rollout/loss_tokens next to nothing",
    ),
    "rollout/loss_tokens": Entry("loss positions of this rank", "tokens", "sum", "steady"),
    "env/{name}/{task}": Entry("a counter of the environment", "count", "mean over trajectories", "see the task"),
    "val/success/{task}": Entry("solved held-out episodes", "share", "mean over episodes of their samples", "rises"),
    "val/reward/{task}": Entry("reward on held-out episodes", "reward", "mean over episodes of their samples", "rises"),
    "coverage/teacher_mass/{task}": Entry(
        "teacher probability on its support", "share", "sampled positions", "over 0.95"
    ),
    "coverage/student_mass/{task}": Entry(
        "student probability on the support", "share", "sampled positions", "over 0.9"
    ),
    "coverage/sampled_in_support/{task}": Entry(
        "student tokens in the support", "share", "sampled positions", "over 0.9"
    ),
    "coverage/overlap/{task}": Entry("shared ids of both models' top-K", "share of K", "sampled positions", "rises"),
    "gap/q10/{task}": Entry("10 % quantile of log π(y) − log q(y)", "nats", "sampled positions", "near 0"),
    "gap/q50/{task}": Entry("median of log π(y) − log q(y)", "nats", "sampled positions", "near 0"),
    "gap/q90/{task}": Entry("90 % quantile of log π(y) − log q(y)", "nats", "sampled positions", "falls to 0"),
    "gap/special_share/{task}": Entry(
        "share of Σ|log q(y)/π(y)| on added tokens (markers, ends, <think>)", "share", "sampled positions", "under 0.3"
    ),
    "signal/negative/{task}": Entry(
        "tokens that the teacher likes less: q(y) < π(y)", "share", "sampled positions", "–"
    ),
    "signal/negative_mass/{task}": Entry(
        "share of Σ|log q(y)/π(y)| with a negative sign", "share", "sampled positions", "falls from 1 to 0.5"
    ),
    "signal/top_1/{task}": Entry(
        "share of Σ|log q(y)/π(y)| on the top 1 % of the tokens", "share", "sampled positions", "under 0.9"
    ),
    "signal/top_10/{task}": Entry(
        "share of Σ|log q(y)/π(y)| on the top 10 % of the tokens", "share", "sampled positions", "under 0.95"
    ),
    "entropy/student/{task}": Entry(
        "entropy of the student's next token", "nats", "sampled positions", "falls slowly, not to 0"
    ),
    "entropy/teacher/{task}": Entry(
        "entropy of the teacher's next token on the student's prefixes", "nats", "sampled positions", "falls"
    ),
    "alarms/on": Entry("alarms that are on", "count", "exact", "0"),
    "mismatch/k1/{task}": Entry(
        "engine against trainer: mean log μ(y) − log π(y), full distributions, temperature 1",
        "nats",
        "k1, sampled positions",
        "below 0.01; 0 in float32",
    ),
    "mismatch/clipped/{task}": Entry(
        "tokens whose weight π(y)/μ(y) is above the cap", "share", "sampled positions", "below 0.01"
    ),
    "kl/k1/{task}": Entry("KL(student‖teacher): mean log π(y)/q(y)", "nats", "k1, sampled positions", "falls to 0"),
    "kl/k2/{task}": Entry("mean ½ (log π(y)/q(y))²", "nats", "k2 (biased), sampled positions", "falls to 0"),
    "kl/k3/{task}": Entry(
        "KL(student‖teacher): mean q(y)/π(y) − 1 − log q(y)/π(y). An exponential: one token with q ≫ π rules the mean",
        "nats",
        "k3, sampled positions; far above k1 it says nothing (y is no sample of π, or π has all but lost what q wants)",
        "falls to 0",
    ),
    "optimizer/grad_norm": Entry("2-norm of the gradient before clipping", "norm", "whole batch", "no spikes"),
    "optimizer/gradient_variance": Entry(
        "trace of the covariance of the step's gradient",
        "norm²",
        "between micro-batches (two at least), 65,536 weights",
        "below grad_norm²",
    ),
    "optimizer/gradient_snr": Entry(
        "(‖g‖² − variance) / variance of the step's gradient",
        "1",
        "between micro-batches",
        "above 1; below 0 all is noise",
    ),
    "optimizer/learning_rate": Entry("learning rate of this update", "1", "exact", "as scheduled"),
    "optimizer/skipped": Entry("update skipped: no loss position in the batch", "0 or 1", "exact", "0"),
    "optimizer/not_finite": Entry(
        "updates skipped so far because the loss or the gradient was not finite", "updates", "exact", "0"
    ),
    "server/retries/{role}": Entry(
        "requests to the teachers' or the engine's server that were sent again after a fault", "requests", "total", "0"
    ),
    "server/waited/{role}": Entry(
        "pauses before these, summed over requests that wait side by side", "seconds", "total", "0"
    ),
    "server/restarts/engine": Entry(
        "times that the student's server had lost its weights and got them again, or an actor of the Ray pool was "
        "replaced",
        "restarts",
        "total",
        "0",
    ),
    "server/resent/engine": Entry("completions that were asked for again because of that", "completions", "total", "0"),
    "optimizer/out_of_memory": Entry(
        "how often micro_batch_tokens was halved because memory ran out", "times", "exact", "0"
    ),
    "checkpoint/failed": Entry("checkpoints that could not be written", "count", "exact", "0"),
    "time/{stage}": Entry("wall time of a stage of the step", "seconds", "this step", "rollout dominates"),
    "throughput/rollout": Entry(
        "generated tokens per second of the rollout stage; with staleness: 1 of the wait for it",
        "tokens/s",
        "this step",
        "steady",
    ),
    "throughput/train": Entry("loss tokens per second of everything else", "tokens/s", "this step", "steady"),
}


def describe(key: str) -> Entry | None:
    """The glossary entry of a logged key; `{task}` and the like match one path segment.

    >>> describe("rollout/reward/sums").unit
    'reward'
    """
    parts = key.split("/")
    for pattern, entry in GLOSSARY.items():
        wanted = pattern.split("/")
        if len(wanted) == len(parts) and all(w.startswith("{") or w == p for w, p in zip(wanted, parts, strict=True)):
            return entry
    return None


def search(words: Sequence[str]) -> dict[str, Entry]:
    """The entries with every one of `words` in their key or meaning, in any case; a logged key finds its own.

    >>> list(search(["mass", "student"])), list(search(["rollout/reward/sums"]))
    (['coverage/student_mass/{task}'], ['rollout/reward/{task}'])
    """
    return {
        key: entry
        for key, entry in GLOSSARY.items()
        if all(w.lower() in f"{key} {entry.meaning}".lower() or describe(w) is entry for w in words)
    }


def subsample(n: int, most: int, generator: torch.Generator | None = None) -> Tensor:
    """Indices [min(n, most)] into n positions, without replacement, ascending."""
    if n <= most:
        return torch.arange(n)
    return torch.randperm(n, generator=generator)[:most].sort().values


def main() -> None:
    """Print the glossary: `python -m opdlight.metrics [words]`."""
    parser = argparse.ArgumentParser(prog="python -m opdlight.metrics", description="The glossary of every logged key.")
    parser.add_argument("words", nargs="*", help="show only what has each of them in key or meaning, such as coverage")
    words = parser.parse_args().words
    found = search(words)
    if not found:
        groups = ", ".join(sorted({key.split("/")[0] for key in GLOSSARY}))
        parser.error(f"nothing has {' and '.join(map(repr, words))} in its key or meaning; groups of keys: {groups}")
    shown = table(Column("key", no_wrap=True, overflow="fold"), "meaning", "unit", "estimator", "healthy")
    for key, e in found.items():
        shown.add_row(key, e.meaning, e.unit, e.estimator, e.healthy)
    show(shown)


if __name__ == "__main__":
    main()
