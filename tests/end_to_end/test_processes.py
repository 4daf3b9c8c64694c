"""Two processes do what one does: DDP and FSDP2 on the CPU, through the entry point."""

import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from opdlight.run_folder.checkpoints import list_checkpoints, steps_of
from opdlight.system import console
from opdlight.train.__main__ import main
from tests.distillation.ranks import run_ranks
from tests.end_to_end.runs import HANGS, ONLY_CLOCKS, metrics

# SGD: AdamW's first steps are sign(gradient), which would hide a wrong scale and blow up roundings of zeros
FAKE = [
    "task.schedule=mixed", "trainer.max_steps=2", "evaluate_teachers=false",
    "task.tasks.sums.episodes=3", "task.tasks.alfworld.episodes=2", "micro_batch_tokens=300", "rollout.group_size=2",
    "callbacks.gradient.places=1000000", "optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.fused",
    "engine._target_=tests.fakes.AnsweringEngine",
]  # fmt: skip


def command(rank: int, arguments: list[str]) -> None:
    """`python -m opdlight.train` as torchrun starts it, in a process that has imported the slow libraries already."""
    importlib.reload(console)  # it was imported before there was a rank
    sys.argv = ["opdlight.train", *arguments]
    main()


def run(folder: Path, *overrides: str, nodes: int = 1, each: int = 2, **how: Any) -> str:
    """Run to the end on so many `nodes`, with `each` so many processes; returns what is printed."""
    arguments, logs = [*overrides, f"hydra.run.dir={folder}"], folder.with_name(f"{folder.name}-logs")
    said = run_ranks(command, arguments, nodes=nodes, each=each, logs=logs, **how)
    others = [line for rank in range(1, nodes * each) for line in (logs / f"{rank}.log").read_text().splitlines()]
    assert [line for line in others if not line.startswith("[rank")] == []  # torch's C++ part: a command silences it
    return said


def launch(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The command alone, whose first process starts the other one."""
    line = [sys.executable, "-m", "opdlight.train", *overrides, f"hydra.run.dir={folder}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=HANGS)


# shares of positions beyond a threshold or inside a set of K: they jump where a rounding crosses the edge
JUMPS = re.compile(r"signal/negative/|coverage/(sampled_in_support|overlap)/|mismatch/clipped/|gap/special_share/")


def assert_same(one: Path, two: Path) -> None:
    """Losses, gradient norms and what else is logged and continuous are equal but for roundings, and so are weights.

    Matrix products sum in another order on another processor, with other threads and beside other rows, so log-probs
    differ by some 1e-6 times their size. A mistake (a wrong share of the tokens, a state that was lost) is over 1e-3.
    """
    rows, others = metrics(one), metrics(two)
    assert len(rows) == len(others) > 2
    for row, other in zip(rows, others, strict=True):
        # the noise of a gradient needs two micro-batches, and the i-th ones of all ranks are one there
        logged, too = ({k for k, v in r.items() if v and "optimizer/gradient_" not in k} for r in (row, other))
        assert (logged ^ too) - {"throughput/rank_imbalance"} == set()  # every figure, whoever of the ranks has it
        for key, value in row.items():
            if value and not key.startswith((*ONLY_CLOCKS, "optimizer/gradient_")):
                mine, theirs = float(value), float(other[key])
                if key.startswith("kl/k3/"):  # a mean of exponentials, up to 10⁶ here: as well known as its logarithm
                    mine, theirs = math.log1p(mine), math.log1p(theirs)
                jump = 0.02 if JUMPS.match(key) else 0.0  # of a position that lies on the edge
                assert theirs == pytest.approx(mine, rel=1e-4, abs=3e-5 + jump), key
    weights, theirs = (load_file(f / "student" / "model.safetensors") for f in (one, two))
    start = load_file("opdlight/assets/lab/student/model.safetensors")
    assert weights.keys() == theirs.keys()
    assert max(float((w - start[n]).abs().max()) for n, w in weights.items()) > 1e-5, "nothing was learnt"
    for name, weight in weights.items():
        assert float((weight - theirs[name]).abs().max()) < 1e-6, name


LORA = ["+model.student.lora={r: 4, lora_alpha: 8}", "model.compute_dtype=bfloat16", "optimizer.lr=0.2"]
LORA += ["callbacks.checkpoints.every=1", "callbacks.checkpoints.keep=9"]


# 5 groups: one rank has a trajectory more. 1 group on 4 ranks: two roll out nothing, and learn from rows of the others;
# they are on two nodes, which have a student each
@pytest.mark.parametrize(
    ("groups", "placement", "trainers", "nodes", "more"),
    [
        (5, "sharded", ["ddp", "fsdp"], 1, ["rollout.mini_batches=2", "trainer.max_steps=4"]),
        (1, "offloaded", ["fsdp"], 2, ["task.tasks.alfworld.env.prompt=paper", "loss=sampled_token",
                                       "sampling.top_p=1.0", "loss.baseline=running_mean"]),
        (1, "offloaded", ["fsdp"], 1, LORA),
    ],
    ids=["two", "two nodes", "adapters on bfloat16"],
)  # fmt: skip
def test_several_processes_learn_what_one_learns(
    groups: int, placement: str, trainers: list[str], nodes: int, more: list[str], tmp_path: Path
) -> None:
    overrides = [*FAKE, f"rollout.groups={groups}", f"teacher_placement={placement}", *more]
    recompute = ["+model.student.gradient_checkpointing=true", "+callbacks.c._target_=tests.fakes.CheckpointedLayers"]
    within = ["trainer.strategy.shard_within=node", f"trainer.num_nodes={nodes}"] if nodes > 1 else []
    for trainer in ("cpu", *trainers):
        how = [f"trainer={trainer}", "trainer.accelerator=cpu"]
        how += ["trainer.devices=2", *within, *recompute] if trainer in trainers else []
        where = {"nodes": nodes} if trainer in trainers else {"each": 1}
        run(tmp_path / trainer, *overrides, *how, **where)
    for trainer in trainers:
        assert_same(tmp_path / "cpu", tmp_path / trainer)
        assert_same_records(tmp_path / "cpu", tmp_path / trainer)
    if more is not LORA:  # there every rank has a single micro-batch
        assert_same_gradients(*(tmp_path / trainer for trainer in trainers), updates=2 if groups > 1 else 1)
    else:
        go_on_after_a_step(tmp_path / "fsdp", tmp_path / "again", "fsdp")


def assert_same_records(one: Path, two: Path) -> None:
    """The recorded trajectories and the profile are of the same episodes, whichever rank rolled them out."""
    lines, others = (list(map(json.loads, (f / "trajectories.jsonl").read_text().splitlines())) for f in (one, two))
    for line, other in zip(lines, others, strict=True):
        for key in ("update", "stage", "task", "seed", "group", "status", "reward", "metrics"):
            assert line[key] == other[key], key
    profiles = ((f / "profile.csv").read_text().splitlines() for f in (one, two))
    for row, other_row in zip(*profiles, strict=True):
        assert row.split(",")[:6] == other_row.split(",")[:6]  # update, task, axis, start, end, tokens


def assert_same_gradients(*folders: Path, updates: int) -> None:
    """The micro-batches of all ranks are those of the others, however the strategy adds up gradients."""
    found = [[r for r in metrics(folder) if r["optimizer/gradient_variance"]] for folder in folders]
    for rows in zip(*found, strict=True):
        variances, ratios = ([float(r[f"optimizer/gradient_{n}"]) for r in rows] for n in ("variance", "snr"))
        assert variances == pytest.approx(variances[:1] * len(rows), rel=1e-3) and min(variances) > 0
        assert ratios == pytest.approx(ratios[:1] * len(rows), rel=1e-3)
        if updates == 1:  # all weights are followed, so ‖g‖² is known
            size = (ratios[0] + 1) * variances[0]
            assert size == pytest.approx(float(rows[0]["optimizer/grad_norm"]) ** 2, rel=1e-3)
    assert found[0]


def go_on_after_a_step(whole: Path, folder: Path, trainer: str) -> None:
    """Resume a copy of a run as if it had been killed after its first step: it ends as that run did."""
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "student")
    for checkpoint in list_checkpoints(folder):
        if steps_of(checkpoint) > 1:
            shutil.rmtree(checkpoint)
    said = run(folder, f"resume={folder}", f"trainer={trainer}", each=1 if trainer == "cpu" else 2)
    assert f"resuming {folder} after step 1" in said
    assert_same(whole, folder)


def test_a_divided_student_goes_on_divided_or_whole(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    overrides = [*FAKE, "rollout.groups=3", "optimizer._target_=torch.optim.AdamW"]
    overrides += ["+optimizer.eps=1e-3", "callbacks.checkpoints.every=1"]  # above roundings of a gradient that is 0
    overrides += ["callbacks.checkpoints.keep=9", "trainer=fsdp", "trainer.accelerator=cpu", "trainer.max_steps=3"]
    run(whole, *overrides)
    for trainer in ("fsdp", "cpu"):
        go_on_after_a_step(whole, tmp_path / trainer, trainer)


def test_sigterm_to_one_process_stops_all_at_the_same_step(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def stop(started: Sequence[Any]) -> None:
        while started[0].exitcode is None and not ((folder / "metrics.csv").exists() and len(metrics(folder)) > 2):
            started[0].join(0.1)
        started[0].terminate()

    overrides = [*FAKE, "trainer=ddp", "trainer.accelerator=cpu", "rollout.groups=3", "trainer.max_steps=500"]
    said = run(folder, *overrides, meanwhile=stop)
    assert "SIGTERM: stopped. To resume:" in said
    done = sum(bool(row["loss/train"]) for row in metrics(folder))
    assert sorted(p.name for p in (folder / "checkpoints").iterdir())[-1] == f"step-{done:08d}"


def test_nobody_waits_for_a_rank_that_failed(tmp_path: Path) -> None:
    overrides = [*FAKE, "engine._target_=tests.fakes.FailingEngine", "trainer=ddp", "trainer.accelerator=cpu"]
    made = launch(tmp_path, *overrides, "rollout.groups=4")
    assert made.returncode != 0
    assert "the engine of rank 1 has failed" in made.stderr + made.stdout


@pytest.mark.vllm
def test_each_rank_gets_the_new_weights_of_a_divided_student(tmp_path: Path) -> None:
    overrides = ["task=sums", "loss=topk_rkl", "trainer=fsdp", "trainer.accelerator=cpu", "trainer.max_steps=3"]
    run(tmp_path / "run", *overrides, "rollout.groups=4", "task.tasks.sums.episodes=2", "evaluate_teachers=false")
    rows = [row for row in metrics(tmp_path / "run") if row["loss/train"]]
    assert len(rows) == 3
    for row in rows:  # engine and trainer agree before and after updates, on both ranks
        found = [abs(float(v)) for k, v in row.items() if k.startswith("mismatch/k1/") and v]
        assert found and all(value < 1e-4 for value in found)
        assert float(row["rollout/staleness"]) == 0
        assert math.isfinite(float(row["optimizer/grad_norm"]))
