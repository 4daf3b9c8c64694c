"""The glossary: what every logged key means, its unit, its estimator, and what is healthy."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain


@dataclass(frozen=True, slots=True)
class Entry:
    """The meaning of a logged key, its unit, how it is estimated, and which values are healthy."""

    meaning: str
    unit: str
    estimator: str
    healthy: str


GLOSSARY: dict[str, Entry] = {
    "loss/train": Entry("value of the objective", "nats", "token mean over the whole batch", "falls"),
    "rollout/reward/{task}": Entry("environment reward", "reward", "mean over trajectories", "rises"),
    "rollout/success/{task}": Entry("solved episodes", "share", "mean over trajectories", "rises"),
    "rollout/turns/{task}": Entry("turns of an episode", "turns", "mean over trajectories", "agents: falls"),
    "rollout/admissible_actions/{task}": Entry(
        "actions that were possible where they were taken, of tasks that count actions",
        "share",
        "mean over the actions that the environment has judged",
        "rises",
    ),
    "rollout/wasted_actions/{task}": Entry(
        "actions that did nothing: unparsable (none could be read), inadmissible (not possible there), or ineffective "
        "(possible, but it changed nothing and told nothing new; only of environments that can tell)",
        "share",
        "mean over the actions that the environment has judged",
        "falls",
    ),
    "rollout/success": Entry("status: solved", "share", "all trajectories of the batch", "rises"),
    "rollout/failure": Entry("status: ended unsolved", "share", "all trajectories", "falls"),
    "rollout/truncated_turns": Entry("status: cut by the turn limit", "share", "all trajectories", "falls"),
    "rollout/truncated_tokens": Entry("status: cut by the token limit", "share", "all trajectories", "under 0.05"),
    "rollout/env_error": Entry("status: the environment raised", "share", "all trajectories", "0"),
    "rollout/completion_tokens": Entry("length of a turn's completion", "tokens", "mean over turns", "steady"),
    "rollout/sampled_tokens": Entry(
        "tokens that the student sampled in this step", "tokens", "sum over the trajectories of all ranks", "steady"
    ),
    "rollout/cut_by_length/{task}": Entry(
        "trajectories with a completion that hit the length limit", "share", "mean over trajectories", "under 0.1"
    ),
    "rollout/repetition/{task}": Entry(
        "4-grams of tokens that the trajectory contains earlier",
        "share",
        "mean over trajectories",
        "steady; see the task",
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
        "0, or very few compared with rollout/loss_tokens",
    ),
    "rollout/loss_tokens": Entry("loss positions of the step", "tokens", "sum over all ranks", "steady"),
    "env/{name}/{task}": Entry("a counter of the environment", "count", "mean over trajectories", "see the task"),
    "val/success/{task}": Entry(
        "solved held-out episodes",
        "share",
        "mean over episodes of their samples",
        "rises; at a third of a run it is the best sign of the end",
    ),
    "val/reward/{task}": Entry("reward on held-out episodes", "reward", "mean over episodes of their samples", "rises"),
    "val/admissible_actions/{task}": Entry(
        "rollout/admissible_actions on held-out episodes", "share", "mean over the actions of all episodes", "rises"
    ),
    "val/wasted_actions/{task}": Entry(
        "rollout/wasted_actions on held-out episodes", "share", "mean over the actions of all episodes", "falls"
    ),
    "coverage/teacher_mass/{task}": Entry(
        "teacher probability on its support", "share", "sampled positions", "over 0.95"
    ),
    "coverage/student_mass/{task}": Entry(
        "student probability on the support", "share", "sampled positions", "over 0.9, and does not fall"
    ),
    "coverage/sampled_in_support/{task}": Entry(
        "student tokens in the support", "share", "sampled positions", "over 0.9, and does not fall"
    ),
    "coverage/overlap/{task}": Entry(
        "shared ids of both models' top-K",
        "share of K",
        "sampled positions",
        "rises or falls; no sign of the end was found",
    ),
    "gap/q10/{task}": Entry("10 % quantile of log π(y) − log q(y)", "nats", "sampled positions", "near 0"),
    "gap/q50/{task}": Entry(
        "median of log π(y) − log q(y)", "nats", "sampled positions", "near 0; no sign of the end was found"
    ),
    "gap/q90/{task}": Entry("90 % quantile of log π(y) − log q(y)", "nats", "sampled positions", "falls to 0"),
    "gap/special_share/{task}": Entry(
        "share of Σ|log q(y)/π(y)| on added tokens (markers, ends, <think>)", "share", "sampled positions", "under 0.3"
    ),
    "signal/negative/{task}": Entry(
        "tokens that the teacher finds less likely: q(y) < π(y)",
        "share",
        "sampled positions",
        "no sign of the end was found",
    ),
    "signal/negative_mass/{task}": Entry(
        "share of Σ|log q(y)/π(y)| with a negative sign", "share", "sampled positions", "no sign of the end was found"
    ),
    "signal/top_1/{task}": Entry(
        "share of Σ|log q(y)/π(y)| on the top 1 % of the tokens",
        "share",
        "sampled positions",
        "rises as the student nears its teacher, and few tokens still differ",
    ),
    "signal/top_10/{task}": Entry(
        "share of Σ|log q(y)/π(y)| on the top 10 % of the tokens", "share", "sampled positions", "rises"
    ),
    "entropy/student/{task}": Entry(
        "entropy of the student's next token", "nats", "sampled positions", "falls while success rises, not to 0"
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
        "k3, sampled positions; not to be trusted far above k1 (y is no sample of π, or π(y) ≪ q(y) for likely y)",
        "falls to 0",
    ),
    "optimizer/grad_norm": Entry("2-norm of the gradient before clipping", "norm", "whole batch", "no spikes"),
    "optimizer/gradient_variance": Entry(
        "trace of the covariance of the step's gradient",
        "norm²",
        "between micro-batches (two at least), 65,536 weights; the i-th ones of all ranks count as one micro-batch",
        "below grad_norm²",
    ),
    "optimizer/gradient_snr": Entry(
        "(‖g‖² − variance) / variance of the step's gradient",
        "1",
        "between micro-batches",
        "high: a sign of the end; below 0 all is noise",
    ),
    "optimizer/learning_rate": Entry("learning rate of this update", "1", "exact", "as scheduled"),
    "optimizer/skipped": Entry("update skipped: no loss position in the batch", "0 or 1", "exact", "0"),
    "optimizer/not_finite": Entry(
        "updates skipped so far because the loss or the gradient was not finite", "updates", "exact", "0"
    ),
    "server/retries/{role}": Entry(
        "requests to the teachers' or the engine's server that were repeated after a fault", "requests", "total", "0"
    ),
    "server/waited/{role}": Entry(
        "pauses before repeated requests, summed over concurrent ones", "seconds", "total", "0"
    ),
    "server/restarts/engine": Entry(
        "times that the student's server had lost its weights and was sent them again, or that an actor of the Ray "
        "pool was replaced",
        "restarts",
        "total",
        "0",
    ),
    "server/resent/engine": Entry("completions that were requested again after a restart", "completions", "total", "0"),
    "publish/bytes": Entry(
        "size of the weights that the first rank's engine was sent last, in the engine's dtype, each weight once",
        "bytes",
        "exact",
        "2 bytes a weight in bfloat16; steady",
    ),
    "publish/seconds": Entry(
        "wall time of that: the engine wakes up, weights are gathered, sent and loaded",
        "seconds",
        "last publication",
        "far below time/rollout",
    ),
    "optimizer/out_of_memory": Entry(
        "how often micro_batch_tokens was halved after running out of memory", "times", "exact", "0"
    ),
    "checkpoint/failed": Entry("checkpoints that could not be written", "count", "exact", "0"),
    "time/{part}": Entry("wall time of a part of the step", "seconds", "mean over ranks", "rollout dominates"),
    "throughput/rollout": Entry(
        "generated tokens per second of the rollout; with staleness: 1 of the wait for it",
        "tokens/s",
        "all ranks' tokens by the slowest one's time",
        "steady",
    ),
    "throughput/train": Entry(
        "loss tokens per second of everything else", "tokens/s", "all ranks' tokens by their mean time", "steady"
    ),
    "throughput/mfu": Entry(
        "model FLOPs utilisation of everything but the rollout: what the layers of student (forward, backward) and "
        "teacher (forward) cost, by what the GPUs could do in that time",
        "share",
        "6 a weight and token (2 for a teacher) and 12 (4) layers × heads × head width a pair of tokens of every "
        "row, though a prompt that rows share may run once; without LM head, recomputation and "
        "probe. Not on a CPU or a GPU that Lightning does not know, nor with experts",
        "0.2 to 0.5 with long rows",
    ),
    "throughput/rank_imbalance": Entry(
        "tokens of the rows on the busiest rank by the mean of all ranks",
        "1",
        "padding included unless rows are packed",
        "below 1.1",
    ),
    "memory/gpu": Entry(
        "most memory that tensors took on a GPU in this step, the engine's included where it runs in the process",
        "GiB",
        "the fullest rank, torch's allocator",
        "below the GPU's",
    ),
    "memory/host": Entry(
        "most memory that a process has taken since its start", "GiB", "the largest rank, resident", "levels off"
    ),
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
    """The entries that contain every one of `words` in key or description; a logged key finds its entry.

    Case is ignored, and `_`, `-` and a blank are one character: `micro_batch` finds "micro-batches".

    >>> list(search(["mass", "student"])), list(search(["rollout/reward/sums"]))
    (['coverage/student_mass/{task}'], ['rollout/reward/{task}'])
    """
    return {
        key: entry
        for key, entry in GLOSSARY.items()
        if all(_plain(word) in _text(key, entry) or describe(word) is entry for word in words)
    }


def similar(text: str) -> list[str]:
    """Words of the glossary that look like one of `text`, the nearest first.

    >>> similar("packing"), similar("mini_batch")
    (['padding'], ['batch', 'batches'])
    """
    known = {w for key, entry in GLOSSARY.items() for w in re.findall(r"\w{3,}", _text(key, entry))}
    near = (difflib.get_close_matches(word, sorted(known), n=2, cutoff=0.7) for word in _plain(text).split())
    return list(dict.fromkeys(chain.from_iterable(near)))


def _text(key: str, entry: Entry) -> str:
    return _plain(f"{key} {entry.meaning} {entry.unit} {entry.estimator} {entry.healthy}")


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]+", " ", text.lower())
