"""What the READMEs show holds: their Python runs, their files are written, their commands are checked."""

import contextlib
import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import hydra
import pytest

import opdlight.api
from tests.fakes import AnsweringEngine
from tests.readme_blocks import READMES, ROOMS, ROOT, blocks, commands, words_of, write_files

# the quick start's numbers, so that it lasts a second; with a real engine it brings the student to 70 %
SMALLER = {"episodes=128": "episodes=2", "updates=20": "updates=2", "groups=48": "groups=2"}
CONF = ROOT / "conf"
of_each_readme = pytest.mark.parametrize("readme", READMES, ids=str)


def test_no_text_file_holds_conflict_markers() -> None:
    suffixes = {"", ".md", ".py", ".yaml", ".toml", ".txt", ".json", ".html", ".js", ".css", ".jinja", ".sh"}
    files = [*ROOT.iterdir(), *(file for room in (*ROOMS, "docs", "ci") for file in (ROOT / room).rglob("*"))]
    markers = re.compile(rb"^(<{7}|[|]{7}|>{7}) |^={7}$", flags=re.MULTILINE)
    texts = [file for file in files if file.suffix in suffixes and file.is_file()]
    assert [file for file in texts if markers.search(file.read_bytes())] == []


@of_each_readme
def test_yaml_is_a_file(readme: Path) -> None:
    for block in blocks(readme, "yaml"):
        assert block.file, f"its first line must be a comment with the name of the file:\n{block.text}"


@of_each_readme
def test_python_runs(readme: Path, beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opdlight.api, "VLLMEngine", AnsweringEngine)
    write_files(readme, beside)
    names: dict[str, Any] = {}
    for block in blocks(readme, "python"):
        text = block.text
        for shown, small in SMALLER.items():
            text = text.replace(shown, small)
        if block.file:
            names |= vars(importlib.import_module(Path(block.file).stem))
        else:
            exec(compile(text, str(readme), "exec"), names)


class _Handed(Exception):
    """The config was composed and checked, and Hydra would start the run."""


@of_each_readme
def test_commands_are_right(readme: Path, beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(readme, beside)
    make_latest_run(beside)
    for words in commands(readme):
        if words[:2] == ["python", "-m"] and words[2].startswith("opdlight"):
            check_command(words[2], words[3:], monkeypatch)
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), words


@pytest.mark.parametrize(
    "file", [*sorted(CONF.glob("*.yaml")), CONF / "callbacks/default.yaml"], ids=lambda file: file.stem
)
def test_commands_in_comments_are_right(file: Path, beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_latest_run(beside)
    comments = re.findall(r"^ *# (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for words in (words_of(line) for line in comments if line.startswith("python -m opdlight.")):
        if "--config-dir" not in words:  # of one's own
            check_command(words[2], words[3:], monkeypatch)
    for word in re.findall(r"callbacks\.[\w.]+=\w+", " ".join(comments)):
        check_command("opdlight.train", [word], monkeypatch)


def make_latest_run(folder: Path) -> None:
    """What `resume=runs/latest` looks at."""
    run = folder / "runs" / "latest"
    run.mkdir(parents=True)
    (run / "overrides.json").write_text("[]")


def check_command(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that a command does before Hydra starts its run: compose, check, or print and be done."""

    def hand_over(*_: Any, **__: Any) -> Any:
        raise _Handed

    monkeypatch.setattr(hydra, "main", hand_over)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    monkeypatch.delitem(sys.modules, f"{module}.__main__", raising=False)  # runpy warns if another test has imported it
    code = None
    try:
        with contextlib.suppress(_Handed):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    assert not code, shlex.join(["python", "-m", module, *arguments])
