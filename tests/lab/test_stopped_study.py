"""A study that is stopped or killed leaves no run behind."""

import os
import signal
import sys
from pathlib import Path

import pytest

from opdlight.lab.tables.runs import Planned, train_all
from tests.forked import processes
from tests.system.test_parents import until

RUN = """
import signal, sys, time
from pathlib import Path
def heard(number, frame):
    Path("heard").write_text(str(int(number)))
    sys.exit()
signal.signal(signal.SIGTERM, heard)
Path("ready").write_text("")
time.sleep(600)
"""


class Waits(Planned):
    """A run that waits for SIGTERM."""

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-c", RUN]


def study(folder: Path) -> None:
    os.chdir(folder)
    train_all([Waits(setting="s", arm="a", seed=1, folder=Path("run"), overrides=(), teachers=False)], jobs=1)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGKILL, marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux can")),
    ],
)
def test_its_runs_are_asked_to_end(number: signal.Signals, tmp_path: Path) -> None:
    process = processes.Process(target=study, args=(tmp_path,))
    process.start()
    assert until((tmp_path / "ready").is_file) and process.pid is not None
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == (143 if number == signal.SIGTERM else -number)
    assert until(lambda: (tmp_path / "heard").is_file() and (tmp_path / "heard").read_text() == "15")
