"""Believable run folders, made up: what the callbacks of a run leave behind, without a run.

`python tests/report/made_up.py <folder> [trajectories]` writes one to look at.
"""

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

TASKS = ("sums", "alfworld")
STATUSES = ("success", "failure", "truncated_turns", "truncated_tokens", "env_error")
PHRASES = {
    "sums": ["<think>", "36", " +", " 53", " =", " ", "89", ".", "\n", "Check", ":", " 89", " -", " 53", " =", " 36",
             "</think>", "\\boxed", "{", "89", "}", "<|end|>"],
    "alfworld": ["<think>", "The", " apple", " is", " on", " the", " table", ".", "</think>", "take", " apple", " 1",
                 " from", " dining", "table", " 1", "\n", "<|end|>"],
}  # fmt: skip
PROMPTS = {
    "sums": ["<|user|>State the final answer to the following arithmetic problem: 36 + 53 =<|end|><|assistant|>"],
    "alfworld": [
        "<|user|>You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a diningtable 1 and "
        "a fridge 1.\nYour task is to: put a hot apple in fridge.<|end|><|assistant|>",
        "<|user|>You arrive at diningtable 1. On the diningtable 1, you see an apple 1 and a knife 2.<|end|>"
        "<|assistant|>",
        "<|user|>Nothing happens.<|end|><|assistant|>",
    ],
}
SHELF = "\n".join(f"On the shelf {n} you see a book {n}, a candle {n} and a statue {n}." for n in range(1, 47))
PROMPTS["alfworld"].append(f"<|user|>{SHELF}<|end|><|assistant|>")  # longer than the inspector shows at once
WORDS = [" the", " a", "table", " 1", " 2", ".", "go", " to", " open", "\n", " fridge", " 42", "?", " and", "  "]


def make_run(
    folder: Path, *, seed: int = 0, updates: int = 60, trajectories: int = 40, k: int = 32, gain: float = 1.0
) -> Path:
    """A finished run; `gain` says how well it learns."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "task": {"_target_": "opdlight.data.TaskMixture", "tasks": {t: {"turn_tokens": 24} for t in TASKS}},
        "loss": {"_target_": "opdlight.losses.SupportMatching", "k": k, "divergence": "reverse_kl"},
        "optimizer": {"lr": 1e-3 * gain, "betas": [0.9, 0.95]},
        "seed": seed,
        "run_dir": str(folder),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "versions.json").write_text(json.dumps({"python": "3.11.7", "torch": "2.13.0"}))
    _metrics(folder, rng, updates, gain)
    _profile(folder, rng, updates, gain)
    lines(folder / "trajectories.jsonl", [trajectory(rng, i, trajectories, updates) for i in range(trajectories)])
    lines(folder / "held_out.jsonl", [_held_out(rng, step, t, gain) for step in (0, updates) for t in TASKS])
    lines(folder / "token_gaps.jsonl", [_gaps(rng, u, t) for u in range(0, updates, 10) for t in TASKS])
    alarm = {
        "update": 12, "key": "coverage/student_mass/alfworld", "value": 0.43, "threshold": 0.5, "kind": "below",
        "meaning": "The student puts half of its mass where the loss does not look.",
        "advice": "Raise loss.k, or lower the temperature.", "until": None,
    }  # fmt: skip
    spike = {**alarm, "update": 30, "key": "optimizer/grad_norm", "value": 41.0, "threshold": 20.0, "kind": "above"}
    lines(folder / "alarms.jsonl", [alarm, {**alarm, "until": 21}, spike])
    (folder / "summary.json").write_text(json.dumps({"tasks": {t: _outcome(rng, gain) for t in TASKS}, **SECONDS}))
    return folder


KINDS = {  # of actions → whether that of turn j, from 0, is one
    "admissible_actions": lambda j: j % 3 != 1,
    "inadmissible_actions": lambda j: j % 3 == 1 and j % 2,
    "unparsable_actions": lambda j: j % 3 == 1 and not j % 2,
    "ineffective_actions": lambda j: j == 5,
}
SECONDS = {
    "seconds": {"set-up": 12.9, "evaluate before": 24.1, "train": 303.8, "train: rollout": 187.3, "train: score": 50.8},
    "tokens": {"generated": 89376, "trained": 89376},
}


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def trajectory(rng: np.random.Generator, i: int, n: int, updates: int, task: str | None = None) -> dict[str, Any]:
    """The i-th of n trajectories, as `trajectories.jsonl` holds it."""
    task = task or TASKS[i % 2]
    status = STATUSES[min(4, int(rng.geometric(0.5)) - 1)] if task == "alfworld" else STATUSES[int(rng.integers(2))]
    stage = "val" if i < n // 10 or i >= n - n // 10 else "train"
    update = 0 if i < n // 10 else updates if stage == "val" else max(1, i * updates // n)
    count = 1 if task == "sums" else int(rng.integers(2, 9))
    count = 0 if status == "env_error" and i % 3 == 0 else count
    turns = [_turn(rng, task, j, update, update / updates) for j in range(count)]
    return {
        "update": update, "stage": stage, "task": task, "seed": int(rng.integers(1 << 30)), "group": i // 4,
        "status": status, "reward": float(status == "success"),
        "metrics": {kind: sum(turn["metrics"].get(kind, 0.0) for turn in turns) for kind in KINDS}, "turns": turns,
    }  # fmt: skip


def _held_out(rng: np.random.Generator, step: int, task: str, gain: float) -> dict[str, Any]:
    likely = 0.14 + 0.5 * gain * (step > 0)
    won = [int(rng.random() < likely) for _ in range(64)]
    turns = [1 if task == "sums" else int(rng.integers(4, 25)) if w else 30 for w in won]
    episodes = [[10**9 + n, w, float(w), t] for n, (w, t) in enumerate(zip(won, turns, strict=True))]
    return {"step": step, "task": task, "episodes": episodes}


def _turn(rng: np.random.Generator, task: str, j: int, update: int, learnt: float) -> dict[str, Any]:
    text = list(PHRASES[task])
    c = len(text)
    student = -rng.exponential(0.35, c)
    gap = rng.normal(0, 0.15, c) - (rng.random(c) < 0.12 * (1.3 - learnt)) * rng.exponential(4, c)
    teacher = np.minimum(-1e-4, student + gap)
    first = [[str(w) for w in rng.permutation([w for w in WORDS if w != t])[:4]] for t in text]
    left = np.log(-np.expm1(np.minimum(student, -1e-3)))[:, None]  # what the sampled token leaves to the others
    rest = left + np.log(np.sort(rng.dirichlet(np.full(5, 0.6), c)[:, :4], axis=1)[:, ::-1] + 1e-6)
    prompts = PROMPTS[task]
    kinds = KINDS if task == "alfworld" else {}
    return {
        "prompt": prompts[3 if j % 5 == 3 else min(j, 2)] if task == "alfworld" else prompts[0],
        "metrics": {kind: float(when(j)) for kind, when in kinds.items()},
        "prompt_control": [[0, 1]],
        "control": [t in ("<think>", "</think>", "<|end|>") for t in text],
        "split": j == 4,
        "finish_reason": "stop",
        "policy_version": update,
        "reward": 0.0,
        "ids": [int(x) for x in rng.integers(0, 770, c)],
        "text": text,
        "student": four(student),
        "teacher": four(teacher),
        "engine": four(student + rng.normal(0, 1e-3, c)),
        "mass": four(1 - 0.4 * rng.beta(0.3, 4, c)),
        "divergence": four(np.abs(gap) * rng.random(c)),
        "kept": [t != "<think>" for t in text],
        "student_top": [
            sorted([[t, s, q], *([w, r, r - 1] for w, r in zip(ws, four(rs), strict=True))], key=lambda x: -x[1])
            for t, s, q, ws, rs in zip(text, four(student), four(teacher), first, rest, strict=True)
        ],
        "teacher_top": [
            sorted(
                [[t, q, s], *([w, r, r - 0.5] for w, r in zip(ws[::-1], four(rs), strict=True))], key=lambda x: -x[1]
            )
            for t, s, q, ws, rs in zip(text, four(student), four(teacher), first, rest, strict=True)
        ],
    }


def four(values: Any) -> list[float]:
    """Four significant digits."""
    return [float(f"{v:.4g}") for v in values]


def _metrics(folder: Path, rng: np.random.Generator, updates: int, gain: float) -> None:
    rows: list[dict[str, float]] = [{"step": 0, **{f"val/success/{t}": 0.14 for t in TASKS}}]
    rows[0] |= {"val/wasted_actions/alfworld": 0.412, "val/admissible_actions/alfworld": 0.7}
    for u in range(updates):
        at = 1 - math.exp(-3 * gain * u / updates)
        row = {
            "step": u,
            "loss/train": 0.9 * (1 - at) + 0.08 + rng.normal(0, 0.04),
            "optimizer/grad_norm": math.exp(rng.normal(0.6 - at, 0.35)) * (20 if u == 30 else 1),
            "rollout/completion_tokens": 22 + 3 * at + rng.normal(0, 1),
        }
        shares = rng.dirichlet([1 + 12 * at, 9 - 7 * at, 1, 0.5, 0.05])
        row |= {f"rollout/{s}": x for s, x in zip(STATUSES, shares, strict=True)}
        row |= {f"time/{s}": m * math.exp(rng.normal(0, 0.15)) for s, m in STAGES.items()}
        task = TASKS[int(u % 3 == 2)]
        row[f"rollout/success/{task}"] = float(np.clip(0.14 + 0.6 * at + rng.normal(0, 0.08), 0, 1))
        row[f"rollout/turns/{task}"] = 1.0 if task == "sums" else 13 - 5 * at + rng.normal(0, 0.5)
        if task == "alfworld":
            row["rollout/wasted_actions/alfworld"] = 0.4 - 0.3 * at + abs(rng.normal(0, 0.02))
            row["rollout/admissible_actions/alfworld"] = 0.7 + 0.25 * at - abs(rng.normal(0, 0.02))
        row[f"coverage/student_mass/{task}"] = min(1, 0.93 + 0.06 * at + rng.normal(0, 0.01))
        row[f"coverage/sampled_in_support/{task}"] = min(1, 0.94 + 0.05 * at + rng.normal(0, 0.01))
        row[f"coverage/overlap/{task}"] = 0.4 + 0.3 * at + rng.normal(0, 0.02)
        row[f"kl/k3/{task}"] = 0.6 * (1 - at) + 0.05 + abs(rng.normal(0, 0.03))
        row[f"mismatch/k1/{task}"] = abs(rng.normal(0, 1e-3))
        rows.append(row)
    rows.append({"step": updates - 1, **{f"val/success/{t}": 0.14 + 0.6 * gain / (gain + 0.2) for t in TASKS}})
    rows[-1] |= {"val/wasted_actions/alfworld": 0.08, "val/admissible_actions/alfworld": 0.961}
    keys = sorted({k for row in rows for k in row})
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        writer.writerows(rows)


STAGES = {"rollout": 3.5, "score": 1.0, "compare": 0.02, "backward": 0.7, "update": 0.05, "publish": 0.1, "watch": 0.2}
PROFILE = ("update", "task", "axis", "start", "end", "tokens", "teacher_mass", "student_mass", "sampled_in_support",
           "overlap", "gap_q10", "gap_q50", "gap_q90", "abs_gap", "student_entropy", "teacher_entropy")  # fmt: skip


def _profile(folder: Path, rng: np.random.Generator, updates: int, gain: float) -> None:
    with (folder / "profile.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(PROFILE)
        for u in range(updates):
            at = 1 - math.exp(-3 * gain * u / updates)
            task = TASKS[int(u % 3 == 2)]
            buckets = [(0, 1)] + [(1 << i, 2 << i) for i in range(5 if task == "sums" else 9)]
            turns = [(i, i + 1) for i in range(1 if task == "sums" else 12)]
            for axis, depth in (("position", buckets), ("turn", turns)):
                for i, (start, end) in enumerate(depth):
                    drift = (1 - 0.8 * at) * i / len(depth)
                    mass = float(np.clip(0.995 - 0.25 * drift - abs(rng.normal(0, 0.01)), 0, 1))
                    wide = 0.05 + 2.5 * drift
                    middle = four([0.99, mass, mass, 0.7 - 0.4 * drift, -0.1 * wide, 0.1 * wide, wide, 0.4 * wide])
                    writer.writerow([u, task, axis, start, end, 48 * (end - start), *middle, 0.4, ""])


def _gaps(rng: np.random.Generator, update: int, task: str) -> dict[str, Any]:
    words = list(dict.fromkeys(PHRASES[task] + WORDS))[:20]
    shares = np.sort(rng.dirichlet(np.full(len(words) + 5, 0.5)))[::-1]
    rows = [
        {"text": w, "id": 700 + i, "special": w.startswith("<"), "count": int(rng.integers(5, 400)),
         "mean": float(f"{rng.normal(-1, 1.5):.4g}"), "share": float(f"{s:.4g}")}
        for i, (w, s) in enumerate(zip(words, shares, strict=False))
    ]  # fmt: skip
    return {"update": update, "task": task, "tokens": 5000, "rows": rows}


def _outcome(rng: np.random.Generator, gain: float) -> dict[str, Any]:
    def result(p: float) -> dict[str, float]:
        return {"success": p, "low": max(0, p - 0.08), "high": min(1, p + 0.08), "pass_at": {"1": p}, "episodes": 128,
                "samples": 1, "reward": p}  # fmt: skip

    before, teacher = 0.2 + 0.1 * rng.random(), 0.85 + 0.1 * rng.random()
    after = before + (teacher - before) * gain / (gain + 0.25)
    closed = (after - before) / (teacher - before)
    return {"before": result(before), "after": result(after), "teacher": result(teacher), "gap_closed": closed}


if __name__ == "__main__":
    print(make_run(Path(sys.argv[1]), trajectories=int(sys.argv[2]) if len(sys.argv) > 2 else 40))
