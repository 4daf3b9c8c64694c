"""Growing files of a run: appended to, cut back at a resume, written atomically."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from opdlight.run_folder.records import MetricsFile, lengths, truncate
from opdlight.run_folder.summary import curves


def test_metrics_get_rows_and_columns(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path)
    file.log_metrics({"b": 1.5}, step=0)
    file.log_metrics({"b": 2.5}, step=1)
    file.log_metrics({"a": 0.1}, step=2)
    assert (tmp_path / "metrics.csv").read_bytes() == b"a,b,step\r\n,1.5,0\r\n,2.5,1\r\n0.1,,2\r\n"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_file_that_is_there_is_continued(tmp_path: Path) -> None:
    MetricsFile(tmp_path).log_metrics({"a": 1.0}, step=0)
    MetricsFile(tmp_path).log_metrics({"a": 2.0}, step=1)
    assert (tmp_path / "metrics.csv").read_bytes() == b"a,step\r\n1.0,0\r\n2.0,1\r\n"


def test_records_go_back_to_what_they_were(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path)
    file.log_metrics({"a": 1.0}, step=0)
    (tmp_path / "alarms.jsonl").write_text("one\n")
    (tmp_path / "student.json").write_text("no record")
    then = lengths(tmp_path)
    assert then == {"alarms.jsonl": 4, "metrics.csv": 1}
    file.log_metrics({"a": 2.0, "new": 3.0}, step=1)  # a new header: the rows count, not the bytes
    with (tmp_path / "metrics.csv").open("a") as half:
        half.write("3.0,")  # killed in the middle of a row
    with (tmp_path / "alarms.jsonl").open("a") as more:
        more.write("two\n")
    (tmp_path / "profile.csv").write_text("began later")
    for _ in range(2):
        truncate(tmp_path, then)
        assert (tmp_path / "metrics.csv").read_bytes() == b"a,new,step\r\n1.0,,0\r\n"
        assert (tmp_path / "alarms.jsonl").read_text() == "one\n"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["alarms.jsonl", "metrics.csv", "student.json"]
    truncate(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["student.json"]


def test_curves_show_a_task_that_was_trained_on_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics.csv").write_text("loss/train,rollout/success/sums,step\n0.5,,0\n0.4,0.25,1\n")
    drawn: list[Figure] = []
    monkeypatch.setattr("opdlight.run_folder.summary.plt.close", drawn.append)
    curves(tmp_path)
    panels = {axis.get_title(): [line.get_marker() for line in axis.lines] for axis in drawn[0].axes}
    assert panels["success"] == ["."] and panels["loss (nats)"] == ["None"], "a line of one point is not seen"
