"""How `"tools" / "bench_growth.py"` measures a size, and what it says of three."""

import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from opdlight.models.flops import training_flops
from tools import bench_growth
from tools.bench_growth import Size, Step, judge


def test_a_step_has_the_size_that_was_asked_for(tmp_path: Path) -> None:
    (step,) = bench_growth.run(Size(groups=2, group_size=2, length=5, k=3, vocabulary=1000, tasks=2), 1, tmp_path)
    assert step.trained == 2 * 2 * 5 and len(step.lengths) == 4
    assert min(step.lengths) > 5, "a prompt and an answer"
    assert step.seconds > step.stages["score"] > 0
    layers = training_flops(AutoModelForCausalLM.from_pretrained(bench_growth.write_model(tmp_path, 1000, 0)))
    assert layers is not None
    assert step.flops == layers.of(step.lengths) + 6 * 1000 * 128 * step.trained, "the head's width is 128"


def test_exponent_and_verdict() -> None:
    assert judge([1.0, 1.1], [2.0, 2.2], work=2.0) == ("1.00", "no faster")
    assert judge([1.0, 1.2], [2.0, 3.0], work=2.0) == ("1.18", "no faster, within the spread")
    assert judge([1.0, 1.1], [4.0, 4.4], work=2.0) == ("2.00", "FASTER")
    assert judge([1.0, 1.0], [1.5, 1.5], work=1.0) == ("× 1.50, the same work", "FASTER")


def test_each_size_is_run_upwards_and_downwards(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    ran = []

    def run(size: Size, steps: int, folder: Path) -> list[Step]:
        """A quadratic step."""
        ran.append(size.groups)
        stages: dict[str, Any] = dict.fromkeys(bench_growth.STAGES, 0.0)
        return [Step(float(size.groups**2), stages, [10] * size.groups, 1, 1.0)] * steps

    monkeypatch.setattr(bench_growth, "run", run)
    monkeypatch.setattr(sys, "argv", ["bench_growth.py", "--series", "tokens", "--sizes", "3", "1", "6"])
    bench_growth.main()
    said = capsys.readouterr()
    rows = [line.strip("| ").split(" | ") for line in said.out.splitlines() if line.startswith("| ")]
    assert "The others: group size 1, length 64, k 32, vocabulary 4,096, turns 1, tasks 1\n" in said.out
    assert said.err.count(" s a step\n") == 6, "after each run"
    assert ran == [1, 3, 6, 6, 3, 1]
    assert [row[:3] for row in rows[1:]] == [
        ["1", "10", "1.000 (1.000–1.000)"], ["3", "30", "9.000 (9.000–9.000)"], ["6", "60", "36.000 (36.000–36.000)"],
    ]  # fmt: skip
    assert [row[-2:] for row in rows[2:]] == [["2.00", "FASTER"], ["2.00", "FASTER"]]
