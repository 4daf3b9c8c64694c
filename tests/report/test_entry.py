"""The command `python -m opdlight.report` in a process of its own."""

from pathlib import Path

import pytest
from made_up import make_run

from opdlight.config import CONF, ReportConfig, compose
from opdlight.config.help import help_text
from opdlight.errors import ConfigError
from tests.forked import command


def test_it_leaves_the_page_and_nothing_else(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "one", updates=5, trajectories=4)
    (tmp_path / "runs" / "latest").symlink_to("one")
    before = {p.name for p in run.iterdir()}
    done = command("opdlight.report", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f" %\nreport: {run / 'report' / 'index.html'}\n")
    assert {p.name for p in run.iterdir()} == before | {"report"}
    assert {p.name for p in tmp_path.iterdir()} == {"runs"}


def test_no_run_is_one_message_and_code_2(tmp_path: Path) -> None:
    done = command("opdlight.report", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: Expected `run` to be the folder of a run (one that holds config.yaml,")
    assert done.stderr.endswith("but got 'runs/latest'.\n")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_and_config() -> None:
    text = help_text(CONF, "report")
    assert "Usage: python -m opdlight.report [key=value]..." in text
    assert "  run=runs/latest" in text
    assert "trainer" not in text  # it has none
    assert "python -m opdlight.report run=[runs/a,runs/b] out=runs/comparison.html" in text
    cfg = compose("report", ReportConfig, ["run=[a,b]", "out=x.html"])
    assert (list(cfg.run), cfg.out, cfg.trajectories) == (["a", "b"], "x.html", 1000)
    with pytest.raises(ConfigError, match="Expected `trajectories` to be int ≥ 0, but got 'many'"):
        compose("report", ReportConfig, ["trajectories=many"])
