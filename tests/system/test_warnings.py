"""Warnings of opdlight are shown although Hydra's log is off."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from opdlight.system.quiet import quiet_libraries
from tests.distillation.one_update import fit, parts

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


def test_a_machine_with_many_cores_brings_no_advice_about_loaders(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning wants a worker a core; ours hold requests."""
    where = "lightning.pytorch.trainer.connectors.data_connector"
    monkeypatch.setattr(f"{where}.suggested_max_num_workers", lambda local_world_size: 15)
    said: list[list[str]] = []
    for quiet in (False, True):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            if quiet:
                quiet_libraries()
            module, data, _ = parts(folders)
            fit(module, data, tmp_path)
        said.append([str(warning.message) for warning in found if "num_workers" in str(warning.message)])
    assert len(said[0]) > 0
    assert said[1] == []
