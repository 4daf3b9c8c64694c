"""The command line of a run that goes on."""

import json
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from opdlight.config.resume import resume_command, search_path, with_resumed
from opdlight.errors import ConfigError


def run(folder: Path, *overrides: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "overrides.json").write_text(json.dumps(overrides))
    return folder


def test_without_resume_it_is_as_it_was_typed() -> None:
    for overrides in (["task=sums"], ["resume=null", "task=sums"], ["this is no override"]):
        assert with_resumed(overrides) == overrides


def test_the_run_s_own_come_first_and_what_is_given_again_replaces_them(tmp_path: Path) -> None:
    folder = run(tmp_path / "one", "task=sums", "loss=topk_rkl", "+a.b=1", "~optimizer.betas", "resume=old", "seed=3")
    given = [f"resume={folder}", "loss=k2", "a.b=2", "seed=4"]
    assert with_resumed(given) == ["task=sums", "~optimizer.betas", *given, f"hydra.run.dir={folder}"]


def test_a_link_is_followed_and_odd_names_are_quoted(tmp_path: Path) -> None:
    folder = run(tmp_path / "it's a=b, {c}", "task=sums")
    (tmp_path / "latest").symlink_to(folder.name)
    found = with_resumed([f"resume={tmp_path / 'latest'}"])
    assert found[-1] == f"hydra.run.dir='{tmp_path}/it\\'s a=b, {{c}}'"
    assert with_resumed(found)[-1] == found[-1]  # as a process that Lightning starts does
    assert resume_command("runs/a") == "python -m opdlight.train resume=runs/a"


ODD = [
    "a b",
    "é",
    "a=b",
    "a,b",
    "it's",
    'a"b',
    "a\\b",
    "a\\",
    "a\\'b",
    "[x]{y}",
    "$x",
    "a:b",
    "x#y%",
    "\\\\'",
    "~a;b&c",
]


@pytest.mark.parametrize("name", ODD)
def test_any_name_survives_hydra_and_the_shell(name: str) -> None:
    parse = OverridesParser.create().parse_override
    typed = shlex.split(resume_command(name))
    assert typed[:3] == ["python", "-m", "opdlight.train"]
    assert parse(typed[3]).value() == name
    assert [str(folder) for folder in parse(search_path([name, "b"])).value()] == [name, "b"]  # type: ignore[union-attr]


def test_a_config_dir_given_again_takes_the_place_of_the_run_s(tmp_path: Path) -> None:
    folder = run(tmp_path / "one", "task=mine", search_path(["file:///there"]))
    assert search_path(["file:///there"]) in with_resumed([f"resume={folder}"])
    assert search_path(["file:///there"]) not in with_resumed([f"resume={folder}"], searched=True)


def test_what_is_no_run_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Expected `resume` to be the folder of a run of opdlight\.train"):
        with_resumed([f"resume={tmp_path}"])


def test_of_a_sweep_it_names_the_runs_to_choose_from(tmp_path: Path) -> None:
    for name in ("1_seed-2", "0_seed-1"):
        run(tmp_path / "sweep" / name, "task=sums")
    with pytest.raises(ConfigError, match=r"one run; this folder holds those of a sweep: 0_seed-1, 1_seed-2, but got"):
        with_resumed([f"resume={tmp_path / 'sweep'}"])
