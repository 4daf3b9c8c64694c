"""Reading run folders that are complete, cut off within a line, incomplete, or not of a run."""

import json
import math
from pathlib import Path

import pytest
from made_up import lines, make_run, trajectory
from numpy.random import default_rng

from opdlight.errors import ConfigError
from opdlight.report.build import Section, page, report
from opdlight.report.read import OPTIONAL, WITHOUT, read_run
from opdlight.report.rows import trajectory_row
from opdlight.report.text import number, script_json, visible


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "one", updates=12, trajectories=12)


def test_a_whole_run_is_read_without_a_note(run: Path) -> None:
    found = read_run(run)
    assert found.notes == []
    assert (found.name, found.updates, found.tasks) == ("one", 12, ["alfworld", "sums"])
    assert len(found.trajectories) == 12
    steps, values = found.curves["val/success/sums"]
    assert (steps.tolist(), values[0]) == ([0, 11], 0.14)
    assert found.config["loss.k"] == "32"
    assert found.config["optimizer.betas"] == "[0.9, 0.95]"


def cut(path: Path, characters: int) -> None:
    path.write_bytes(path.read_bytes()[:-characters])


def test_a_killed_run_keeps_all_but_the_lines_that_were_cut(run: Path) -> None:
    (run / "summary.json").unlink()
    whole = read_run(run)
    for name in sorted({*WITHOUT} - {"config.yaml", "summary.json"}):
        cut(run / name, 10)
    found = read_run(run)
    assert found.trajectories == whole.trajectories[:-1]
    assert found.token_gaps == whole.token_gaps[:-1]
    assert found.alarms == whole.alarms[:-1]
    assert found.held_out == whole.held_out[:-1]
    assert [(d.update, d.axis, d.start) for d in found.profile] == [
        (d.update, d.axis, d.start) for d in whole.profile[:-1]
    ]
    assert len(found.curves["loss/train"][0]) == 12
    assert len(found.curves["val/success/sums"][0]) == 1  # the second was in the last line
    notes = " ".join(found.notes)
    assert "summary.json is missing" in notes
    for name in ("metrics.csv", "profile.csv"):
        assert f"{name}: the last line was cut off" in notes
    assert "trajectories.jsonl: line 12 cannot be read and is left out; the last line was cut off." in notes


def test_the_page_says_what_is_missing(run: Path, tmp_path: Path) -> None:
    for name in WITHOUT:
        if name != "metrics.csv":
            (run / name).unlink()
    cut(run / "metrics.csv", 10)
    text = report(str(run), str(tmp_path / "page.html")).read_text()
    assert "unfinished" in text
    for name in ("summary.json", "profile.csv", "trajectories.jsonl", "token_gaps.jsonl", "config.yaml"):
        assert f"{name} is missing" in text
    assert "No trajectory was recorded" in text
    assert "Nothing to show: profile.csv is missing or empty." in text
    assert "No threshold was crossed." in text


@pytest.mark.parametrize("name", list(WITHOUT))
@pytest.mark.parametrize("content", [b"", b"\x00\x00\x00", b"\xff\xfe{]:", b"null\n[]\n3\n", b"{\n", b"a,b\n1,2\n"])
def test_no_content_of_a_file_stops_the_page(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert report(str(tmp_path)).is_file()


def test_every_file_but_one_may_be_there(run: Path) -> None:
    kept = {name: (run / name).read_bytes() for name in WITHOUT}
    for name in WITHOUT:
        (run / name).unlink()
        found = read_run(run)
        assert [note.split()[0] for note in found.notes] == [name] * (name not in OPTIONAL)
        assert page([found], [Section(slug="outcome", title="Outcome")], 10)
        (run / name).write_bytes(kept[name])


@pytest.mark.parametrize(
    "change",
    [
        {"turns": 3}, {"task": None}, {"update": "x"}, {"metrics": []}, {"reward": "much"}, {"update": 1e999},
        {"turns": [{}]}, {"seed": None}, {"status": 5},
    ],
)  # fmt: skip
def test_a_line_in_another_form_is_left_out(change: dict[str, object], tmp_path: Path) -> None:
    good = trajectory(default_rng(1), 1, 4, 10)
    lines(tmp_path / "trajectories.jsonl", [good, {**good, **change}, good])
    found = read_run(tmp_path)
    assert len(found.trajectories) == 2
    assert "trajectories.jsonl: line 2 cannot be read and is left out." in found.notes


def test_lists_of_different_lengths_and_numbers_that_are_none(tmp_path: Path) -> None:
    good = trajectory(default_rng(1), 1, 4, 10, task="sums")
    uneven, infinite = json.loads(json.dumps(good)), json.loads(json.dumps(good))
    uneven["turns"][0]["mass"].pop()
    infinite["turns"][0]["teacher"][:3] = [-math.inf, math.nan, None]
    lines(tmp_path / "trajectories.jsonl", [uneven, infinite])
    (found,) = read_run(tmp_path).trajectories
    assert found["turns"][0]["teacher"][:3] == [-99.0, None, None]
    assert "NaN" not in script_json(found)
    assert report(str(tmp_path)).is_file()


def test_a_token_that_was_not_scored_has_no_candidates() -> None:
    names = ("ids", "text", "kept", "student", "teacher", "engine", "mass", "divergence")
    turn = {name: [None, None] for name in names} | {"ids": [5, 6], "text": ["a", "b"], "kept": [True, True]}
    tops = {"student_top": [None, [["a", -0.1, None]]], "teacher_top": [None, None]}
    facts = {"prompt": "", "split": True, "finish_reason": "stop", "policy_version": 0, "reward": 0.0}
    line = {"update": 0, "stage": "train", "task": "a", "seed": 1, "group": 0, "status": "success", "reward": 1.0}
    (read,) = trajectory_row({**line, "metrics": {}, "turns": [{**facts, **turn, **tops}]})["turns"]
    assert read["student_top"] == [[], [["a", -0.1, None]]]
    assert read["teacher_top"] == [[], []]


@pytest.mark.parametrize(("spans", "parts"), [
    ([[0, 3], [5, 8]], [("<e>", True), ("a", False), ("␀", False), ("<e>", True)]),
    ([], [("<e>a␀<e>", False)]),
])  # fmt: skip
def test_a_prompt_says_which_of_it_are_control_tokens(spans: list[list[int]], parts: list[tuple[str, bool]]) -> None:
    made = trajectory(default_rng(0), 1, 4, 6, task="sums")
    made["turns"][0] |= {"prompt": "<e>a\0<e>", "prompt_control": spans}
    read = trajectory_row(made)["turns"][0]
    joined = "".join(text for text, _ in parts)
    assert "".join(text for text, _ in read["parts"]) == joined
    assert [text for text, control in read["parts"] if control] == [text for text, control in parts if control]
    del made["turns"][0]["prompt_control"], made["turns"][0]["control"]  # as runs were recorded before
    read = trajectory_row(made)["turns"][0]
    assert read["parts"] == [("<e>a␀<e>", False)]
    assert not any(read["control"])
    made["turns"][0]["prompt_control"] = [[5, 3]]
    with pytest.raises(ValueError, match="control tokens of a prompt"):
        trajectory_row(made)


def test_what_is_no_run_is_one_message_that_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("no run")
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "other.txt"):
        with pytest.raises(ConfigError) as error:
            report(str(folder))
        assert str(error.value).startswith("Expected `run` to be the folder of a run (one that holds config.yaml, ")
        assert str(error.value).endswith(f"but got {str(folder)!r}.")
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": []}, "Expected `run` to be the folders of 1 to 26 runs, but got []."),
        ({"out": "somewhere"}, "Expected `out` to be a file that ends in .html, but got 'somewhere'."),
        ({"trajectories": -1}, "Expected `trajectories` to be 0 or more, but got -1."),
    ],
)
def test_arguments_that_make_no_sense(change: dict[str, object], message: str, run: Path) -> None:
    with pytest.raises(ConfigError) as error:
        report(**{"run": str(run), **change})  # type: ignore[arg-type]
    assert str(error.value) == message


def test_visible_text() -> None:
    assert visible("plain ▁ é 漢 👩‍🚀\n\t") == "plain ▁ é 漢 👩‍🚀\n\t"
    assert visible("\x00\x1b\x7f\x85\r") == "␀␛␡⟨U+0085⟩␍"
    assert visible("\u202e\u2066\u200b\ufeff\ud800\u2028") == ("⟨U+202E⟩⟨U+2066⟩⟨U+200B⟩⟨U+FEFF⟩⟨U+D800⟩⟨U+2028⟩")


def test_numbers() -> None:
    assert [number(x) for x in (1, 2.5, None, math.nan, math.inf, -math.inf)] == [1.0, 2.5, None, None, None, -99.0]
    with pytest.raises(TypeError):
        number("1")
