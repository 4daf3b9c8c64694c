"""The page of arms: its parts, what it says of runs that failed, escaping, and that it needs no network."""

import csv
import re
from pathlib import Path

import pytest
from made_up import lines
from made_up_arms import make_arm_run
from test_page import HOSTILE, parse

from opdlight.errors import ConfigError
from opdlight.report.arms import figures
from opdlight.report.build import report

ALARM = {"update": 0, "key": "kl/k3/sums", "value": 1, "threshold": 2, "kind": "above", "meaning": "x", "advice": "y",
         "until": None}  # fmt: skip


@pytest.fixture(autouse=True)
def few_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first of the curves over updates: drawing takes nearly all of the time."""
    monkeypatch.setattr(figures, "CURVES", figures.CURVES[:1])


def make_sweep(folder: Path) -> Path:
    """Two arms of two seeds, of which one run failed."""
    good, bad = [[0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    for n, (loss, seed, found) in enumerate([("a", 1, good), ("a", 2, good), ("b", 1, bad), ("b", 2, bad)]):
        run = make_arm_run(
            folder / str(n), seed=seed, success={"sums": found}, overrides=[f"loss={loss}"], finished=n != 3,
            config={"loss": {"_target_": loss, **({"k": 8} if loss == "b" else {"gamma": 1})}}, teacher=1.0,
        )  # fmt: skip
        if loss == "b":
            lines(
                run / "alarms.jsonl",
                [{**ALARM, "until": None}, {**ALARM, "until": 1}, {**ALARM, "update": 1, "until": None}],
            )
    (folder / "multirun.yaml").write_text("{}")
    return folder


def test_the_page_of_a_sweep(tmp_path: Path) -> None:
    file = report(str(make_sweep(tmp_path / "sweep")))
    assert file == tmp_path / "sweep" / "report" / "index.html"
    text = file.read_text()
    for title in (
        "Held-out success",
        "Success at the end",
        "Success over the run",
        "Largest fall of success",
        "Gradient SNR",
    ):
        assert f"<h3>{title} · sums</h3>" in text
    assert "<h3>Loss</h3>" in text and "Tokens to half of the gap · sums" not in text  # arm b did not get there
    drawn = sorted((file.parent / "figures").glob("*.png"))
    assert len(drawn) == text.count("<figure ") and all(f.read_bytes().startswith(b"\x89PNG") for f in drawn)
    assert "3 finished, 1 failed" in text and "0 of 2 reach it" in text
    assert "at the end 1 of 1 intervals exclude 0, by chance alone about 0.1 would" in text
    assert "The gap is that to the teacher: 100.0 %." in text
    assert "2 of 2 (4 times)" in text and "<code>kl/k3/sums</code>" in text
    changes = "".join(re.findall(r'<td class="changes">(<div>.*?)</td>', text))
    assert (
        "<code>&#34;a&#34;</code> → <code>&#34;b&#34;</code>" in changes
        and "<code>loss.k</code>: <code>8</code>" in changes
    )
    assert "without <code>loss.gamma</code>" in changes
    links = re.findall(r'<a href="(\.\./\d/)">', text)
    assert links == ["../3/", "../0/", "../1/", "../2/"] and all((file.parent / link).is_dir() for link in links)
    arms = list(csv.DictReader((file.parent / "arms.csv").read_text().splitlines()))
    assert [(row["arm"], row["failed"], row["difference"]) for row in arms] == [
        ("loss=a", "0", ""),
        ("loss=b", "1", "-1"),
    ]
    other = report(str(tmp_path / "sweep"), str(tmp_path / "other.html"), baseline="b").read_text()
    assert '<caption>Arms compared with <span class="long">loss=b</span>' in other
    again = report(str(file.parent), str(tmp_path / "tables.html")).read_text()  # from runs.csv and episodes.csv
    assert "<h3>Success at the end · sums</h3>" in again and "<h3>Loss</h3>" not in again


def test_runs_that_are_not_compared_by_arm_have_no_baseline(tmp_path: Path) -> None:
    run = make_arm_run(tmp_path / "run", seed=1, success={"sums": [[0], [1]]})
    with pytest.raises(ConfigError, match="Expected `baseline` to be null where runs are not compared by arm"):
        report(str(run), baseline="a")
    with pytest.raises(ConfigError, match=r"Expected `baseline` to be one of the arms \(one arm\)"):
        report(str(tmp_path), baseline="two")


def test_a_sweep_without_any_evaluation_has_its_page(tmp_path: Path) -> None:
    for n in range(2):
        make_arm_run(tmp_path / str(n), seed=n, success={}, finished=False)
    text = report(str(tmp_path)).read_text()
    assert "Nothing to compare: no run has been evaluated." in text and "2 failed" in text


def test_hostile_names_stay_text_and_nothing_is_fetched(tmp_path: Path) -> None:
    for n, text in enumerate(HOSTILE[1:3]):
        folder = tmp_path / "javascript:alert(1)" / f"{n}<b onclick=alert(2)>"
        success = {name: [[0, 0], [1, 0]] for name in (HOSTILE[0], HOSTILE[8])}
        run = make_arm_run(folder, seed=1, success=success, config={"loss": {HOSTILE[4]: text}})
        lines(run / "alarms.jsonl", [{**ALARM, "key": text}])
    (tmp_path / "javascript:alert(1)" / "multirun.yaml").write_text("{}")
    page = report(str(tmp_path / "javascript:alert(1)")).read_text(encoding="utf-8")
    elements = parse(page)
    assert [tag for tag, _ in elements.tags].count("script") == 2
    assert not {"img", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in elements.tags}
    for _, attributes in elements.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "../"))
    assert not re.search(r"url\((?!#)|@import", page)
    assert not re.search("[\0\x1b\u202e\u2066\u2028\u2029]", page)
