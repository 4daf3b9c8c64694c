"""MathDataset: three known data sets by their own shapes, and one clear error for everything that is wrong."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import gymnasium
import pyarrow
import pytest
from pyarrow import parquet

import opdlight.envs  # noqa: F401
from opdlight.envs import math_dataset
from opdlight.envs.conformance import check_text_env
from opdlight.envs.math_dataset import MathDatasetEnv
from opdlight.errors import ConfigError, MissingDependencyError

GSM8K = [
    {"question": "Tom has 3 apples and buys 4. How many?", "answer": "He has 3 + 4 = <<3+4=7>>7.\n#### 7"},
    {"question": "A car costs $1,000. Two cars?", "answer": "2 * 1000 = 2000\n#### 2,000"},
]
MATH = [
    {"problem": "Solve $2x=1$.", "solution": "Halve: $\\boxed{\\frac{1}{2}}$.", "answer": "\\frac{1}{2}", "level": 1}
]
DAPO_WORDS = "Solve the problem. The last line must be Answer: $Answer.\n\n"
DAPO = [
    {
        "prompt": [{"role": "user", "content": f"{DAPO_WORDS}What is 2+2?"}],
        "reward_model": {"ground_truth": "4", "style": "rule"},
    }
]


def jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return str(path)


def test_conformance(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "gsm8k.jsonl", GSM8K)

    def make() -> MathDatasetEnv:
        env = gymnasium.make("opdlight/MathDataset-v0", path=path).unwrapped
        assert isinstance(env, MathDatasetEnv)
        return env

    check_text_env(make)


def test_gsm8k(tmp_path: Path) -> None:
    env = MathDatasetEnv(jsonl(tmp_path / "gsm8k.jsonl", GSM8K))
    observation, _ = env.reset(seed=0)
    assert observation == f"{GSM8K[0]['question']}\nPut your final answer in \\boxed{{}}."
    assert env.expert_action() == "<think>He has 3 + 4 = <<3+4=7>>7.</think>\\boxed{7}"
    assert env.step(env.expert_action())[1] == 1.0
    assert env.step("\\boxed{8}")[1] == 0.0
    env.reset(seed=1)
    assert env.step("\\boxed{2000}")[1] == env.step("\\boxed{2{,}000.00}")[1] == 1.0


def test_math_500(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "math.jsonl", MATH)
    for answer in ("answer", "solution"):
        env = MathDatasetEnv(path, question="problem", answer=answer)
        env.reset(seed=0)
        for right in ("\\frac{1}{2}", "0.5", "1/2", "x=\\frac12", "\\dfrac{1}{2}"):
            assert env.step(f"\\boxed{{{right}}}")[1] == 1.0, right
        assert env.step("\\boxed{2}")[1] == 0.0
        assert env.step(env.expert_action())[1] == 1.0
    assert env.expert_action() == "<think>Halve: $\\boxed{\\frac{1}{2}}$.</think>\\boxed{\\frac{1}{2}}"


def test_dapo_from_parquet(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(DAPO), tmp_path / "dapo.parquet")
    env = MathDatasetEnv(
        str(tmp_path / "dapo.parquet"),
        question="prompt.0.content",
        answer="reward_model.ground_truth",
        remove=[DAPO_WORDS],
    )
    assert env.reset(seed=17)[0] == "What is 2+2?\nPut your final answer in \\boxed{}."
    assert env.step("\\boxed{4}")[1] == 1.0


def test_a_hostile_answer_is_counted(tmp_path: Path) -> None:
    env = MathDatasetEnv(jsonl(tmp_path / "math.jsonl", MATH), question="problem")
    env.reset(seed=0)
    assert env.step("\\boxed{9^{9^{9^9}}}")[4] == {
        "success": False,
        "metrics": {"answer_found": 1.0, "grader_timeouts": 1.0, "grader_errors": 0.0},
    }


def test_the_row_is_the_seed_modulo_the_rows_and_rows_load_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = jsonl(tmp_path / "n.jsonl", [{"question": f"q{n}", "answer": n} for n in range(7)])
    env = MathDatasetEnv(path, instruction="")
    assert [env.reset(seed=seed)[0] for seed in (0, 6, 7, 2 * 10**9)] == ["q0", "q6", "q0", f"q{2 * 10**9 % 7}"]
    monkeypatch.setattr(math_dataset, "_read", lambda *_: pytest.fail("read twice"))
    assert MathDatasetEnv(path).rows is env.rows


def test_a_data_set_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(name: str, subset: str | None, *, split: str) -> list[dict[str, str]]:
        calls.append((name, subset, split))
        return GSM8K

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    env = MathDatasetEnv("some/gsm8k", split="train", subset="main")
    assert calls == [("some/gsm8k", "main", "train")]
    assert len(env.rows) == 2
    with pytest.raises(ConfigError, match=r"`split`.*a split of the data set 'some/gsm8k'"):
        MathDatasetEnv("some/gsm8k")


def test_a_data_set_by_name_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match="pip install datasets"):
        MathDatasetEnv("some/other", split="train")


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, {}, "`path`.*an existing file"),
        ("", {}, "`path`.*at least one row"),
        ("\n\n", {}, "`path`.*at least one row"),
        ('{"question": "a", "answer": "1"}\n{"question"', {}, "`path`.*JSON on line 2"),
        ("[1]", {}, "`path`.*a JSON object on line 1"),
        ('{"questions": "a", "answer": "1"}', {}, "`question`.*did you mean 'questions'"),
        ('{"question": "a", "answer": {"text": "1"}}', {}, "`answer`.*texts or numbers"),
        ('{"question": "a", "answer": {"text": "1"}}', {"answer": "answer.texts"}, "`answer`.*did you mean 'text'"),
        ('{"question": "a", "answer": " "}', {}, "`answer`.*row 1 is empty"),
        ('{"question": "", "answer": "1"}', {}, "`question`.*row 1 is empty"),
        ('{"question": "a", "answer": "1"}', {"split": "train"}, "`split`.*`path` is a file"),
        ('{"question": "a", "answer": "1"}', {"subset": "main"}, "`subset`.*`path` is a file"),
    ],
)
def test_wrong_arguments(tmp_path: Path, content: str | None, arguments: dict[str, str], message: str) -> None:
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        MathDatasetEnv(str(path), **arguments)  # type: ignore[arg-type]


def test_other_kinds_of_file(tmp_path: Path) -> None:
    for path in ("rows.csv", str(tmp_path)):
        with pytest.raises(ConfigError, match=r"`path`.*a \.jsonl or \.parquet file"):
            MathDatasetEnv(path)
