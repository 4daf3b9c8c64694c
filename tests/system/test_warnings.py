"""Warnings of opdlight are shown although Hydra's log is off."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import logging, sys
from dataclasses import dataclass
from pathlib import Path

from opdlight.config.entry import hydra_entry

early = logging.getLogger("opdlight.rollout.env_pool")


@dataclass
class Schema:
    a: int


def run(cfg):
    early.error("an environment failed")
    logging.getLogger("opdlight.data.tasks").warning("rows repeat")
    logging.getLogger("library").warning("chatter")


hydra_entry("x", Schema, conf=Path(sys.argv.pop()))(run)()
"""


def test_warnings_of_opdlight_reach_stderr_and_those_of_libraries_do_not(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: 1\nhydra:\n  run:\n    dir: .\n  output_subdir: null\n")
    command = [sys.executable, "-c", SCRIPT, "a=2", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "an environment failed" in found.stderr
    assert "rows repeat" in found.stderr
    assert "chatter" not in found.stderr + found.stdout
