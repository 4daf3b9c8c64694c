"""Every kind of malformed row is one error that names the argument, the file and the line; the good ones are read."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from opdlight.envs.math_dataset import MathDatasetEnv
from opdlight.envs.rows import read_json_lines, read_rows
from opdlight.errors import ConfigError
from opdlight.sft.demonstrations import read_demonstrations

GOOD = b'{"question": "1 + 1?", "answer": 2}'
DEMONSTRATION = {"task": "c", "seed": 1, "steps": [{"observation": "go", "reply": "right", "learn": True}],
                 "system_prompt": None, "fresh_prompt": False, "success": True}  # fmt: skip

NOT_JSON = {  # line → what the message says
    b'{"question"': "JSON",
    b"nonsense": "JSON",
    GOOD + GOOD: "Extra data",
    b"{'question': 1}": "JSON",
    b"[1, 2]": "a JSON object",
    b"null": "a JSON object",
    b'"text"': "a JSON object",
    b"[" * 100_000: "nested less deeply",
    b'{"question": ' * 100_000: "nested less deeply",
    b'{"question": "a", "answer": NaN}': "NaN is no number",
    b'{"question": "a", "answer": -Infinity}': "-Infinity is no number",
    b'{"question": "a", "answer": 2, "score": NaN}': "NaN is no number",
    b'{"question": "a", "answer": ' + b"9" * 5000 + b"}": "4300 digits",
    b'{"question": "caf\xe9", "answer": 2}': "UTF-8",
    GOOD.decode().encode("utf-16"): "UTF-8",
    b"\xef\xbb\xbf" + GOOD: "byte order mark",
    b'{"question": "a\x01", "answer": 2}': "Invalid control character",
}
NOT_A_QUESTION = {  # line → argument
    b'{"question": "\\ud800", "answer": 2}': "question",
    b'{"question": "a", "answer": "x \\udc00 y"}': "answer",
    b'{"question": "a", "answer": 1e999}': "answer",
    b'{"question": "a", "answer": true}': "answer",
    b'{"question": "a", "answer": null}': "answer",
    b'{"question": "a", "answer": [2]}': "answer",
    b'{"question": "a"}': "answer",
    b'{"question": "a", "answer": " "}': "answer",
    b'{"question": "", "answer": 2}': "question",
    b'{"question": "cut me", "answer": 2}': "question",
    b'{"question": {"text": "a"}, "answer": 2}': "question",
}


@pytest.mark.parametrize("line", NOT_JSON, ids=lambda line: repr(line[:40]))
def test_a_line_that_is_no_json_object_is_named(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b"\n\n" + line + b"\n" + GOOD)
    for read in (lambda: MathDatasetEnv(str(path)), lambda: list(read_json_lines(path, "path"))):
        with pytest.raises(ConfigError) as caught:
            read()
        said = str(caught.value)
        assert f"line 3 of {path}" in said
        assert NOT_JSON[line] in said
        assert said.startswith("Expected `path` to be ")
        assert len(said) < 600
        said.encode()


@pytest.mark.parametrize("line", NOT_A_QUESTION, ids=lambda line: repr(line[:40]))
@pytest.mark.parametrize("held_out", [False, True])
def test_a_line_that_is_no_question_is_named(line: bytes, held_out: bool, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b"\n\n" + line + b"\n" + GOOD)
    arguments: dict[str, Any] = {"held_out": {"path": str(path)}} if held_out else {"path": str(path)}
    with pytest.raises(ConfigError) as caught:
        MathDatasetEnv(**arguments, remove=["cut me"])
    said = str(caught.value)
    assert f"line 3 of {path}" in said
    assert said.startswith(f"Expected `{'held_out.' if held_out else ''}{NOT_A_QUESTION[line]}` to be ")
    assert len(said) < 600
    said.encode()


def test_lines_end_where_json_lines_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"question": "a\u2028b\x85c", "answer": 2}\r\n\r\n{"question": "d", "answer": 3}'.encode())
    rows = list(read_rows(str(path), None, None))
    assert [row.values["question"] for row in rows] == ["a\u2028b\x85c", "d"]
    assert [row.where for row in rows] == [f"line 1 of {path}", f"line 3 of {path}"]


def test_rows_of_parquet_that_are_malformed(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    for name, column, argument in (
        ("null", pyarrow.array(["1", None]), "answer"),
        ("nan", pyarrow.array([1.0, float("nan")]), "answer"),
        ("bytes", pyarrow.array([b"1", b"2"]), "answer"),
        ("utf-8", pyarrow.array([b"1", b"\xff"]).view(pyarrow.string()), "path"),
        ("list", pyarrow.array([["1"], ["2"]]), "answer"),
    ):
        parquet.write_table(pyarrow.table({"question": ["a", "b"], "answer": column}), path)
        row = 1 if name in ("bytes", "list") else 2
        with pytest.raises(ConfigError, match=rf"`{argument}`.*row {row} of .*rows\.parquet"):
            MathDatasetEnv(str(path))
    for content in (b"", b"PAR1 and then nothing"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"`path`.*a Parquet file"):
            MathDatasetEnv(str(path))


@pytest.mark.parametrize(
    "name", ["rows.csv", "rows.jsonl.gz", "rows.txt", "rows.json", ".", "folder.jsonl", "no.jsonl"]
)
def test_what_is_no_file_of_rows(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"Expected `path` to be (a \.jsonl or \.parquet file|an existing file)"):
        MathDatasetEnv(str(tmp_path / name))


def test_endings_in_capitals_are_files_too(tmp_path: Path) -> None:
    path = tmp_path / "ROWS.JSONL"
    path.write_bytes(GOOD)
    assert [row.values for row in read_rows(str(path), None, None)] == [json.loads(GOOD)]


def changed(**fields: Any) -> bytes:
    return json.dumps({**DEMONSTRATION, **fields}).encode()


BAD_DEMONSTRATIONS = {
    **dict.fromkeys(NOT_JSON, "demonstrations.file"),
    changed(steps=[]): "at least one step",
    changed(steps=[{"observation": 3, "reply": "a"}]): r"steps[0].observation",
    changed(steps=[{"observation": "a"}]): r"steps[0].reply",
    changed(steps="a"): "steps",
    changed(seed=1.5): "seed",
    changed(seed=10**9): "held out",
    changed(seed=-1): "training episode",
    changed(extra=1): "extra",
    changed(task="\ud800"): "lone surrogate",
    changed(steps=[{"observation": "a", "reply": "\udfff"}]): "lone surrogate",
    b"{}": "task",
}


@pytest.mark.parametrize("line", BAD_DEMONSTRATIONS, ids=lambda line: repr(line[:60]))
def test_a_demonstration_that_is_malformed_is_named(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "demonstrations.jsonl"
    path.write_bytes(changed() + b"\n" + line + b"\n")
    with pytest.raises(ConfigError) as caught:
        read_demonstrations(path)
    said = str(caught.value)
    assert "demonstrations.file" in said
    assert f"line 2 of {path}" in said
    assert BAD_DEMONSTRATIONS[line] in said


def test_an_empty_file_of_demonstrations(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match=r"`demonstrations\.file`.*at least one demonstration"):
        read_demonstrations(tmp_path / "d.jsonl")
