"""MathDataset: three known data sets by their own shapes, and one clear error for everything that is wrong."""

import json
import sys
import types
import zlib
from pathlib import Path
from typing import Any

import gymnasium
import pyarrow
import pytest
from pyarrow import parquet

import opdlight.envs  # noqa: F401
from opdlight.envs import math_dataset
from opdlight.envs.base import FIRST_HELD_OUT_SEED
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
    rows = [{"question": f"{GSM8K[0]['question']} ({n})", "answer": GSM8K[0]["answer"]} for n in range(20)]
    path = jsonl(tmp_path / "gsm8k.jsonl", rows)

    def make() -> MathDatasetEnv:
        env = gymnasium.make("opdlight/MathDataset-v0", path=path).unwrapped
        assert isinstance(env, MathDatasetEnv)
        return env

    check_text_env(make)


def test_gsm8k(tmp_path: Path) -> None:
    env = MathDatasetEnv(held_out={"path": jsonl(tmp_path / "gsm8k.jsonl", GSM8K)})
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
        env = MathDatasetEnv(held_out={"path": path}, question="problem", answer=answer)
        env.reset(seed=0)
        for right in ("\\frac{1}{2}", "0.5", "1/2", "x=\\frac12", "\\dfrac{1}{2}"):
            assert env.step(f"\\boxed{{{right}}}")[1] == 1.0, right
        assert env.step("\\boxed{2}")[1] == 0.0
        assert env.step(env.expert_action())[1] == 1.0
    assert env.expert_action() == "<think>Halve: $\\boxed{\\frac{1}{2}}$.</think>\\boxed{\\frac{1}{2}}"


def test_dapo_from_parquet(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(DAPO), tmp_path / "dapo.parquet")
    env = MathDatasetEnv(
        held_out={"path": str(tmp_path / "dapo.parquet")},
        question="prompt.0.content",
        answer="reward_model.ground_truth",
        remove=[DAPO_WORDS],
    )
    assert env.reset(seed=17)[0] == "What is 2+2?\nPut your final answer in \\boxed{}."
    assert env.step("\\boxed{4}")[1] == 1.0


def test_a_hostile_answer_is_counted(tmp_path: Path) -> None:
    rows = [{"question": "The diagonal of a unit square?", "answer": "\\sqrt{2}"}]
    env = MathDatasetEnv(held_out={"path": jsonl(tmp_path / "math.jsonl", rows)})
    env.reset(seed=0)
    assert env.step("\\boxed{9^{9^{9^9}}}")[4] == {
        "success": False,
        "metrics": {"answer_found": 1.0, "grader_timeouts": 1.0, "grader_errors": 0.0},
    }


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"question": f"What is {n} + 1?", "answer": n + 1} for n in range(count)]


def sides(env: MathDatasetEnv) -> tuple[list[str], list[str]]:
    """What the seeds of either side show in one pass, and that the next pass is the same."""
    found = []
    for first, count in ((0, env.training_episodes), (FIRST_HELD_OUT_SEED, env.held_out_episodes)):
        assert count is not None
        shown = [env.reset(seed=first + n)[0] for n in range(2 * count)]
        assert shown[:count] == shown[count:]
        found.append(shown[:count])
    return found[0], found[1]


def test_one_question_in_four_is_held_out_whatever_the_order_and_duplicates_stay_together(tmp_path: Path) -> None:
    rows = numbered(400)
    training, held_out = sides(MathDatasetEnv(jsonl(tmp_path / "a.jsonl", rows), instruction=""))
    assert not set(training) & set(held_out)
    assert {*training, *held_out} == {row["question"] for row in rows}
    assert 70 < len(held_out) < 130
    assert held_out == [row["question"] for row in rows if zlib.crc32(row["question"].encode()) % 4 == 0]
    other = [{"question": f"  {row['question']}\n", "answer": 0} for row in reversed(rows)]  # the same questions twice
    again = sides(MathDatasetEnv(jsonl(tmp_path / "b.jsonl", [*other, *rows]), instruction=""))
    assert [set(side) for side in again] == [set(training), set(held_out)]
    assert [len(side) for side in again] == [2 * len(training), 2 * len(held_out)]


def test_held_out_rows_of_their_own_and_no_question_on_both_sides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, test = jsonl(tmp_path / "train.jsonl", numbered(7)), tmp_path / "test.jsonl"
    held_out = {"path": jsonl(test, [{"problem": "What is 3 + 1?", "answer": 4}, {"problem": "?", "answer": 1}]),
                "question": "problem"}  # fmt: skip
    training, held = sides(MathDatasetEnv(path, held_out=held_out, instruction=""))
    assert training == [f"What is {n} + 1?" for n in (0, 1, 2, 4, 5, 6)]
    assert held == ["What is 3 + 1?", "?"]
    assert "1 of the 7 training questions" in caplog.text
    MathDatasetEnv(path, held_out=held_out)
    assert caplog.text.count("training questions") == 1  # read and told once


def test_a_data_set_to_evaluate_only_has_no_training_rows(tmp_path: Path) -> None:
    env = MathDatasetEnv(held_out={"path": jsonl(tmp_path / "n.jsonl", numbered(7))}, instruction="")
    assert (env.training_episodes, env.held_out_episodes) == (0, 7)
    assert env.reset(seed=3)[0] == "What is 3 + 1?"


def test_rows_load_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "n.jsonl", numbered(40))
    env = MathDatasetEnv(path)
    monkeypatch.setattr(math_dataset, "read_rows", lambda *_: pytest.fail("read twice"))
    assert MathDatasetEnv(path).training is env.training


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        (1, {}, r"`held_out`.*one question in 4, by hash, of the 1 rows of .*leaves no"),
        (9, {"held_out": {"path": "SAME"}}, "`held_out`.*other questions than those of `path`"),
        (9, {"held_out": {"paht": "x.jsonl"}}, r"`held_out\.paht`.*did you mean 'path'"),
        (9, {"held_out": {"path": 3}}, r"`held_out\.path`.*a text, but got 3"),
        (9, {"held_out": {"path": "missing.jsonl"}}, r"`held_out\.path`.*an existing file"),
        (9, {"held_out": {"path": "OTHER", "question": "problm"}}, r"`held_out\.question`.*did you mean 'problem'"),
        (9, {"held_out": {"split": "test"}}, r"`held_out\.split`.*`path` is a file"),
        (9, {"path": None}, r"`path`.*or `held_out\.path`"),
        (9, {"path": None, "held_out": {"split": "test"}}, r"`path`.*or `held_out\.path`"),
    ],
)
def test_wrong_held_out_rows(tmp_path: Path, rows: int, arguments: dict[str, Any], message: str) -> None:
    path = jsonl(tmp_path / "n.jsonl", numbered(rows))
    other = jsonl(tmp_path / "other.jsonl", [{"problem": "1?", "answer": 1}])
    whole = {"path": path, **arguments}
    if whole.get("held_out"):
        named = {"SAME": path, "OTHER": other}
        whole["held_out"] = {k: named.get(v, v) for k, v in whole["held_out"].items()}
    with pytest.raises(ConfigError, match=message):
        MathDatasetEnv(**whole)


def test_a_data_set_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(name: str, subset: str | None, *, split: str) -> list[dict[str, str]]:
        calls.append((name, subset, split))
        if split == "valid":
            raise ValueError('Unknown split "valid".')
        return [GSM8K[split == "test"]]

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    env = MathDatasetEnv("some/gsm8k", split="train", subset="main", held_out={"split": "test"}, instruction="")
    assert calls == [("some/gsm8k", "main", "train"), ("some/gsm8k", "main", "test")]
    assert sides(env) == ([GSM8K[0]["question"]], [GSM8K[1]["question"]])
    with pytest.raises(ConfigError, match=r"`held_out.path`.*split='valid' and subset=None \(Unknown split"):
        MathDatasetEnv(held_out={"path": "some/gsm8k", "split": "valid"})
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
        ('{"question": "a", "answer": "1"}\n{"question"', {}, "`path`.*JSON .* on line 2"),
        ("[1]", {}, "`path`.*a JSON object on line 1"),
        ('{"questions": "a", "answer": "1"}', {}, "`question`.*did you mean 'questions'"),
        ('{"question": "a", "answer": {"text": "1"}}', {}, "`answer`.*texts or numbers"),
        ('{"question": "a", "answer": {"text": "1"}}', {"answer": "answer.texts"}, "`answer`.*did you mean 'text'"),
        ('{"question": "a", "answer": " "}', {}, "`answer`.*line 1 of .*is empty"),
        ('{"question": "", "answer": "1"}', {}, "`question`.*line 1 of .*is empty"),
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


def test_a_row_that_repeats_another_counts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"question": f"{n % 3} + 1?", "answer": n % 3 + 1} for n in range(12)]
    held_out = {"path": jsonl(tmp_path / "other.jsonl", [{"question": "q", "answer": 1}])}
    env = MathDatasetEnv(jsonl(tmp_path / "rows.jsonl", rows), held_out=held_out)
    assert (env.training_episodes, env.held_out_episodes) == (3, 1)
    assert [env.reset(seed=seed)[0].partition("\n")[0] for seed in range(3)] == ["0 + 1?", "1 + 1?", "2 + 1?"]
    assert "9 of the 12 rows of " in caplog.text
