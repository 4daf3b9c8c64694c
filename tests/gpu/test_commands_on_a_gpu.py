"""Whole commands with trainer=gpu, without vLLM: training and its resume, cold start, the doctor's table, tools."""

import json
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from opdlight.doctor.memory import GIB
from opdlight.run_folder.checkpoints import list_checkpoints, steps_of
from tests.end_to_end.runs import HANGS, assert_same_run, metrics, processes, train

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "task=sums", "evaluate_teachers=false", "task.tasks.sums.episodes=2", "rollout.groups=4", "micro_batch_tokens=600",
    "engine._target_=tests.fakes.AnsweringEngine", "callbacks.checkpoints.every=2", "callbacks.checkpoints.keep=9",
    "trainer.max_steps=6", "trainer.val_check_interval=3",
]  # fmt: skip
FLEX = pytest.mark.xfail(torch.__version__ < "2.12", reason="torch 2.11 does not compile it for rows of a new length")


def finish(folder: Path, *overrides: str) -> str:
    """A run to its end in a process of its own, or the rest of one; what it said."""
    begun = (folder / "overrides.json").exists()
    arguments = [f"resume={folder}"] if begun else [*SMALL, *overrides, f"hydra.run.dir={folder}"]
    process = processes.Process(target=train, args=(arguments, f"{folder}.log"))
    process.start()
    process.join(HANGS)
    said = Path(f"{folder}.log").read_text()
    assert process.exitcode == 0, said[-4000:]
    return said


def updates(run: Path) -> list[dict[str, str]]:
    """What was logged of each update."""
    return [row for row in metrics(run) if row["loss/train"]]


def stopped(run: Path, after: int, copy: Path) -> None:
    """A copy of the run as if it had been killed some time after a step."""
    shutil.copytree(run, copy)
    for checkpoint in list_checkpoints(copy):
        if steps_of(checkpoint) > after or checkpoint.name.endswith("-end"):
            shutil.rmtree(checkpoint)
    for name in ("student", "report"):
        shutil.rmtree(copy / name, ignore_errors=True)
    (copy / "summary.json").unlink()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    finish(folder, "trainer=gpu")
    return folder


def test_a_run_says_what_it_takes(whole: Path) -> None:
    rows = updates(whole)
    assert all(0 < float(row["memory/gpu"]) < 1 for row in rows)
    assert all(0 < float(row["throughput/mfu"]) < 1 for row in rows)
    assert "compute_dtype: bfloat16" in (whole / "config.yaml").read_text()
    assert float(rows[-1]["loss/train"]) < float(rows[0]["loss/train"])


def test_the_same_seed_is_the_same_run(whole: Path, tmp_path: Path) -> None:
    finish(tmp_path / "again", "trainer=gpu")
    assert_same_run(whole, tmp_path / "again")


def test_a_resumed_run_is_the_run_that_was_not_stopped(whole: Path, tmp_path: Path) -> None:
    stopped(whole, 2, tmp_path / "run")
    finish(tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer=fsdp", "trainer.devices=1", "teacher_placement=offloaded", "loss=full_rkl"],
        ["trainer=gpu", "teacher_placement=offloaded", "loss=sampled_token_extrapolated", "rollout.mini_batches=2"],
        ["trainer=gpu", "packing=true", "+model.student.gradient_checkpointing=true", "loss=topk_ema_tail"],
        ["trainer=gpu", "+model.student.lora={r: 4, lora_alpha: 8}", "staleness=1", "model.learning_rate=1e-3"],
        pytest.param(["trainer=gpu", "model.attn_implementation=flex_attention"], marks=FLEX),
    ],
    ids=["fsdp offloaded", "offloaded", "packed", "lora", "flex"],
)
def test_other_ways_to_run(overrides: list[str], tmp_path: Path) -> None:
    finish(tmp_path / "run", *overrides)
    rows = updates(tmp_path / "run")
    assert len(rows) == (3 if "rollout.mini_batches=2" in overrides else 6)
    assert all(abs(float(row["loss/train"])) < 20 for row in rows)
    assert float(rows[-1]["optimizer/not_finite"]) == 0


def test_the_cold_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from opdlight.sft.__main__ import main

    made = tmp_path / "made"
    few = ["task=sums", "trainer=gpu", "demonstrations.workers=1", "batch_size=4"]
    first = [*few, "demonstrations.episodes=8", "trainer.max_steps=2", f"hydra.run.dir={made}"]
    monkeypatch.setattr("sys.argv", ["sft", *first])
    main()
    read = [f"demonstrations.file={made / 'demonstrations.jsonl'}", "trainer.max_steps=20"]
    monkeypatch.setattr("sys.argv", ["sft", *few, *read, f"hydra.run.dir={tmp_path / 'read'}"])
    main()
    losses = [float(line.split("last: ")[1].split()[0]) for line in capsys.readouterr().out.splitlines()
              if "loss of the last: " in line]  # fmt: skip
    assert losses[1] < losses[0]
    assert (tmp_path / "read" / "student" / "model.safetensors").is_file()


@pytest.mark.parametrize("way", ["padded", "distinct tokens", "checkpointed", "full vocabulary"])
def test_the_doctor_counts_the_memory_of_a_step(way: str, tmp_path: Path) -> None:
    """A student and a teacher of the shape of Qwen2.5-0.5B; the allocator's peak beside the formulas.

    The formulas count all tokens of the rows, also those that run once for several of them.
    """
    import runpy

    tool: dict[str, Any] = runpy.run_path(str(ROOT / "tools" / "bench_shapes.py"))
    args = Namespace(device="cuda", updates=3, length=512, groups=16, micro_batch_tokens=4096, parts=False)
    model = tool["write_model"]("0.5B", tmp_path, "cuda")
    keep, counted = tool["measure"](args, model, model, tool["WAYS"][way])
    peak = max(step["memory/gpu"] for step in keep.steps)
    print(json.dumps({"way": way, "peak": peak, "doctor": counted / GIB}))
    assert 0.8 * counted / GIB < peak < 1.15 * counted / GIB


def test_the_ways_of_the_head_agree(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import runpy
    import sys

    torch.cuda.empty_cache()
    monkeypatch.setattr(sys, "argv", ["bench_lm_head.py"])
    tool = runpy.run_path(str(ROOT / "tools" / "bench_lm_head.py"))
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 1e-2)):
        args = Namespace(n=600, d=128, k=8, distinct=500, dtype=dtype, device="cuda", threads=1, repeat=2)
        values = [tool["measure"]((args, 4000, way))[2] for way in tool["WAYS"]]
        assert max(values) - min(values) < tolerance, values
