"""The HTML of the page: its parts, escaping, and the comparison of runs."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_up import lines, make_run, trajectory
from matplotlib.figure import Figure
from numpy.random import default_rng

from opdlight.report.build import Section, report
from opdlight.report.build import page as page_of
from opdlight.report.curves import draw_curves
from opdlight.report.draw import Chart, chart
from opdlight.report.outcome import draw_outcome
from opdlight.report.read import read_run
from opdlight.report.turns import draw_turns, turn_lines, wasted_tables

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 2'>",
    "<!--<script>",
    "\0\x1b[31m",
    "\u202eabc\u2066",
    "👩‍🚀🏴‍☠️",
    "\ud83d",
    "\u2028\u2029",
    "]]>&amp;\"'`${window.hacked = 3}{{ 7 * 7 }}",
    "</script x",
    "<!-- <script x",
]


class Elements(HTMLParser):
    """Every start tag, and the text of each script."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and data.strip():
            self.scripts.append(data)


def parse(page: str) -> Elements:
    elements = Elements()
    elements.feed(page)
    return elements


def make_hostile(folder: Path) -> Path:
    """A run whose texts, names and keys are hostile wherever a model, a task or a person could put them."""
    make_run(folder, updates=6, trajectories=4)
    made = trajectory(default_rng(0), 1, 4, 6, task="sums")
    for i, text in enumerate(HOSTILE):
        turn = made["turns"][0]
        turn["text"][i] = text
        turn["student_top"][i][0][0] = turn["teacher_top"][i][4][0] = text
    made["turns"][0]["prompt"] = "".join(HOSTILE)
    made |= {"task": HOSTILE[1], "status": HOSTILE[0], "stage": HOSTILE[4], "metrics": {HOSTILE[0]: 1.0}}
    lines(folder / "trajectories.jsonl", [made])
    gaps = [{"text": t, "id": i, "special": False, "count": 1, "mean": -1, "share": 0.1} for i, t in enumerate(HOSTILE)]
    lines(folder / "token_gaps.jsonl", [{"update": 1, "task": HOSTILE[0], "tokens": 9, "rows": gaps}])
    alarm = {"update": 1, "key": HOSTILE[0], "value": 1, "threshold": 2, "kind": HOSTILE[1], "meaning": HOSTILE[0]}
    lines(folder / "alarms.jsonl", [{**alarm, "advice": "".join(HOSTILE), "until": None}])
    (folder / "config.yaml").write_text(json.dumps({"seed": 1, HOSTILE[0]: HOSTILE}))
    summary = json.loads((folder / "summary.json").read_text())
    summary["tasks"] = dict.fromkeys(HOSTILE, summary["tasks"]["sums"])
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    file = report(str(make_run(tmp_path_factory.mktemp("runs") / "one", updates=30, trajectories=24)))
    return file, file.read_text()


def test_the_page_holds_every_part_and_each_figure_is_a_png_too(page: tuple[Path, str]) -> None:
    file, text = page
    assert file.parts[-3:] == ("one", "report", "index.html")
    for title in (
        "Held-out success", "Loss · sums", "Success · alfworld", "Gradient norm · alfworld", "Coverage · sums",
        "Seconds an update · sums", "Endings of the episodes · alfworld", "Length of a turn · sums",
        "Coverage by depth · sums", "Gap by position · alfworld",
        "Concentration of the signal · sums", "Student and teacher probability · alfworld",
        "Success by number of turns · alfworld", "Gap by turn · alfworld", "Coverage by turn · alfworld",
        "Solved within so many turns · alfworld", "Wasted actions · alfworld", "Admissible actions · alfworld",
    ):  # fmt: skip
        assert f"<h3>{title}</h3>" in text
    for title in ("Turns of an episode", "Solved within so many turns", "Success by number of turns", "Wasted actions"):
        assert f"{title} · sums" not in text  # always one turn
    figures = sorted((file.parent / "figures").glob("*.png"))
    assert len(figures) == text.count("<figure ")
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in figures)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert len(captions) == len(figures)
    for caption in captions:
        assert "healthy" in caption
        assert caption.endswith(".") and ". " not in caption.removesuffix(".")  # one sentence
    assert "gap closed" in text
    assert "coverage/student_mass/alfworld" in text
    assert "Raise loss.k, or lower the temperature." in text
    assert "update 12 – 21" in text


def test_the_page_fetches_nothing(page: tuple[Path, str]) -> None:
    for tag, attributes in parse(page[1]).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,")), (tag, attributes)
    assert not re.search(r"url\((?!#)|@import", page[1])


def test_the_data_can_be_read_back(page: tuple[Path, str]) -> None:
    scripts = parse(page[1]).scripts
    index, recorded = json.loads(scripts[0]), [json.loads(line) for line in scripts[1].strip().split("\n")]
    assert len(index) == len(recorded) == 24
    for short, whole in zip(index, recorded, strict=True):
        assert short["tokens"] == sum(len(turn["ids"]) for turn in whole["turns"])
        assert short["task"] == whole["task"]


def test_at_most_so_many_trajectories_spread_over_all(
    page: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opdlight.report.build.sections", lambda runs: [])  # figures take nearly all of the time
    run = page[0].parents[1]
    text = report(str(run), str(tmp_path / "few.html"), trajectories=5).read_text()
    recorded = [json.loads(line) for line in (run / "trajectories.jsonl").read_text().splitlines()]
    shown = [json.loads(line)["seed"] for line in parse(text).scripts[1].strip().split("\n")]
    assert shown == [recorded[i]["seed"] for i in (0, 6, 12, 17, 23)]
    assert "No trajectory was recorded" in report(str(run), str(tmp_path / "none.html"), trajectories=0).read_text()


def test_actions_that_were_wasted_are_counted_by_their_text(page: tuple[Path, str]) -> None:
    recorded = (page[0].parents[1] / "trajectories.jsonl").read_text().splitlines()
    turns = [turn for line in recorded for turn in json.loads(line)["turns"] if json.loads(line)["task"] == "alfworld"]
    kinds = {
        kind: sum(turn["metrics"][f"{kind}_actions"] for turn in turns)
        for kind in ("inadmissible", "unparsable", "ineffective")
    }
    table = re.search(r"Actions that were wasted most · alfworld.*?</table>", page[1], flags=re.DOTALL)
    assert table
    assert f"{sum(kinds.values()):.0f} of the {len(turns)} actions" in table[0]
    rows = re.findall(r'tok-name">(.*?)</code></th>\s*<td>(\w+)</td><td class="n">(\d+)</td>', table[0])
    assert {kind: float(count) for _, kind, count in rows} == kinds
    assert {text for text, *_ in rows} == {"take apple 1 from diningtable 1"}  # without thought and control token
    assert [int(count) for *_, count in rows] == sorted((int(count) for *_, count in rows), reverse=True)
    assert "Actions that were wasted most · sums" not in page[1]


def test_a_run_that_did_not_note_turns_and_actions_has_its_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "old", updates=6, trajectories=12)
    held_out = [json.loads(line) for line in (run / "held_out.jsonl").read_text().splitlines()]
    lines(run / "held_out.jsonl", [line | {"episodes": [e[:3] for e in line["episodes"]]} for line in held_out])
    recorded = [json.loads(line) for line in (run / "trajectories.jsonl").read_text().splitlines()]
    for one in recorded:
        one["metrics"] = {"inadmissible_actions": 2.0, "unparsable_actions": 0.0}
        one["turns"] = [{k: v for k, v in turn.items() if k != "metrics"} for turn in one["turns"]]
    lines(run / "trajectories.jsonl", recorded)
    metrics = (run / "metrics.csv").read_text().replace("wasted_actions", "x").replace("admissible_actions", "y")
    (run / "metrics.csv").write_text(metrics)
    found = read_run(run)
    assert found.notes == []
    charts = list(draw_turns([found], found.tasks))
    assert [chart.title for chart in charts] == [
        f"{title} · alfworld" for title in ("Success by number of turns", "Gap by turn", "Coverage by turn")
    ]  # the first one of the recorded trajectories
    assert (list(wasted_tables(found)), list(turn_lines(found))) == ([], [])
    text = page_of([found], [Section(slug="turns", title="Turns", charts=charts)], 10)
    assert "Coverage by turn · alfworld" in text and "Actions that were wasted" not in text


def test_a_task_of_one_update_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics.csv").write_text("loss/train,rollout/success/sums,step\n0.5,,0\n0.4,0.25,1\n")
    run = read_run(tmp_path, "A")
    seen: dict[str, list[str]] = {}

    def shown(slug: str, title: str, caption: str, figure: Figure, *, wide: bool = False) -> Chart:
        seen[slug] = [str(line.get_marker()) for line in figure.axes[0].lines if line.get_linewidth() == 2]
        return chart(slug, title, caption, figure, wide=wide)

    monkeypatch.setattr("opdlight.report.curves.chart", shown)
    list(draw_curves([run], ["sums"]))
    assert seen == {"curve loss/train": ["None"], "curve rollout/success/sums": ["."]}


def test_what_mixes_tasks_is_drawn_by_task_where_they_come_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ["step", "loss/train", "rollout/completion_tokens", "memory/host", "time/rollout",
            "rollout/success/sums", "rollout/success/alfworld"]  # fmt: skip
    rows = {
        "turns": ["0,1,10,1,1,0.5,", "1,2,90,2,9,,0.5", "2,3,20,3,2,0.5,", "3,4,80,4,8,,0.5"],
        "mixed": ["0,1,10,1,1,0.5,", "1,2,90,2,9,0.5,0.5", "2,3,20,3,2,0.5,", "3,4,80,4,8,,0.5"],
        "one": ["0,1,10,1,1,0.5,", "1,2,90,2,9,0.5,", "2,3,20,3,2,0.5,", "3,4,80,4,8,0.5,"],
    }
    for name, found in rows.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text("\n".join([",".join(keys), *found, ""]))
    runs = {name: read_run(tmp_path / name, "A") for name in rows}
    drawn: dict[str, list[list[float]]] = {}

    def shown(slug: str, title: str, caption: str, figure: Figure, *, wide: bool = False) -> Chart:
        drawn[title] = [np.array(line.get_xdata()).tolist() for line in figure.axes[0].lines if line.get_lw() == 2]
        return Chart(slug=slug, title=title, caption=caption, svg="", png=b"")

    def titles(*names: str) -> dict[str, list[list[float]]]:
        drawn.clear()
        charts = list(draw_curves([runs[name] for name in names], ["alfworld", "sums"]))
        assert len({c.slug for c in charts}) == len(charts)
        return {title: lines for title, lines in drawn.items() if "Length" in title}

    monkeypatch.setattr("opdlight.report.curves.chart", shown)
    whole, updates = "Length of a turn", [0.0, 1.0, 2.0, 3.0]
    assert titles("turns") == {f"{whole} · alfworld": [[1, 3]], f"{whole} · sums": [[0, 2]]}
    assert {"Memory of a process", "Seconds an update · alfworld", "Loss · sums"} <= drawn.keys()
    assert titles("mixed") == titles("one") == {whole: [updates]}  # an update of both cannot be told apart
    assert titles("turns", "mixed") == {whole: [updates, updates]}
    assert titles("turns", "one") == {f"{whole} · alfworld": [[1, 3]], f"{whole} · sums": [[0, 2], updates]}


def test_the_teacher_has_its_name_though_the_first_task_has_none(tmp_path: Path) -> None:
    make_run(tmp_path, updates=3, trajectories=1)
    summary = json.loads((tmp_path / "summary.json").read_text())
    known = summary["tasks"]["sums"]
    assert known["teacher"]
    summary["tasks"] = {"a_test": {**known, "teacher": None}, "sums": known}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (drawn,) = draw_outcome([read_run(tmp_path, "A")])
    assert ">teacher<" in drawn.svg


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    text = report(str(make_hostile(tmp_path / "run"))).read_text(encoding="utf-8")
    elements = parse(text)
    assert [tag for tag, _ in elements.tags].count("script") == 7
    assert "img" not in [tag for tag, _ in elements.tags]
    assert not any(name.startswith("on") for _, attributes in elements.tags for name in attributes)
    assert not re.search("[\0\x1b\u202e\u2066\u2028\u2029]", text)
    assert "{{ 7 * 7 }}" in text
    assert "49}" not in text
    turn = json.loads(elements.scripts[1])["turns"][0]
    assert turn["text"][:2] == HOSTILE[:2]
    assert turn["text"][3] == "␀␛[31m"
    assert turn["text"][6] == "⟨U+D83D⟩"


def test_runs_are_compared(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", updates=12, trajectories=8)
    b = make_run(tmp_path / "b", seed=1, updates=8, trajectories=8, k=8)
    (b / "summary.json").unlink()
    file = report([str(a), str(b)])
    assert file == tmp_path / "report" / "index.html"
    text = file.read_text()
    assert text.count("<h3>Loss · sums</h3>") == 1  # overlaid
    assert text.count("<h3>Seconds an update · sums · run A</h3>") == 1
    for title in ("Coverage by depth · sums", "Gap by position · sums", "Student and teacher probability · sums"):
        assert text.count(f"<h3>{title} · run A</h3>") == text.count(f"<h3>{title} · run B</h3>") == 1
    table = re.search(r'<table class="keys">.*?</table>', text, flags=re.DOTALL)
    assert table
    rows = re.findall(
        r"<tr><th scope=\"row\"><code>(.*?)</code></th><td><code>(.*?)</code>.*?<code>(.*?)</code>", table[0]
    )
    assert rows == [("loss.k", "32", "8"), ("seed", "0", "1")]
    assert text.count("summary.json is missing") == 1
