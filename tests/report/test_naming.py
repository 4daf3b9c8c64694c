"""Names of compared runs, from what differs between them."""

import json
import re
from pathlib import Path

from opdlight.report.build import report


def run(folder: Path, *overrides: str) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 1")  # nothing to draw, so the page is made fast
    (folder / "overrides.json").write_text(json.dumps(overrides))
    return folder


def titles(page: Path) -> list[str]:
    return re.findall(r'<span class="long">(.*?)</span>', page.read_text(encoding="utf-8"))


def test_cards_are_called_by_what_was_typed_otherwise(tmp_path: Path) -> None:
    folders = [run(tmp_path / "a", "task=sums", "seed=2", "loss=k2"), run(tmp_path / "b", "task=sums", "seed=3")]
    page = report([str(f) for f in folders], str(tmp_path / "page.html"))
    assert titles(page) == ["seed=2 loss=k2 · a", "seed=3 · b"]
    assert "<title>seed=2 loss=k2 · seed=3" in page.read_text(encoding="utf-8")


def test_a_run_alone_and_runs_that_do_not_differ_keep_the_names_of_their_folders(tmp_path: Path) -> None:
    one, two, three = run(tmp_path / "a", "seed=2"), run(tmp_path / "b", "seed=2"), run(tmp_path / "c", "seed=9")
    assert titles(report(str(one), str(tmp_path / "page.html"))) == ["a"]
    assert titles(report([str(one), str(two)], str(tmp_path / "page.html"))) == ["a", "b"]
    found = titles(report([str(one), str(two), str(three)], str(tmp_path / "page.html")))
    assert found == ["seed=2 (a)", "seed=2 (b)", "seed=9 · c"]


def test_a_run_that_is_named_twice_has_one_card(tmp_path: Path) -> None:
    one, two = run(tmp_path / "a", "seed=2"), run(tmp_path / "b", "seed=3")
    (tmp_path / "latest").symlink_to("b")
    wanted = [str(one), str(two), str(tmp_path / "latest"), str(one)]
    assert titles(report(wanted, str(tmp_path / "page.html"))) == ["seed=2 · a", "seed=3 · b"]


def test_a_command_line_that_cannot_be_read_is_no_reason_to_fail(tmp_path: Path) -> None:
    one, two = run(tmp_path / "a", "seed=2"), run(tmp_path / "b", "seed=3")
    (one / "overrides.json").write_text("{")
    (two / "overrides.json").unlink()
    assert titles(report([str(one), str(two)], str(tmp_path / "page.html"))) == ["a", "b"]
