"""The task that the README shows is run as it stands there."""

import re
import sys
from pathlib import Path

import pytest

from opdlight.config import TrainConfig, compose, instantiate
from opdlight.envs.conformance import check_text_env
from opdlight.sft.demonstrations import demonstrate

README = Path(__file__).parents[1] / "README.md"


def block(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)
    return text


def test_the_readmes_task_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corridor.py").write_text(block("python"))
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "corridor.yaml").write_text(block("yaml"))
    monkeypatch.syspath_prepend(str(tmp_path))
    cfg = compose("train", TrainConfig, ["task=corridor"], extra=tmp_path)
    task = instantiate(cfg.task).tasks["corridor"]
    shown = demonstrate("corridor", task, seed=3, detours=0.0)
    assert shown.success
    assert len(shown.steps) == 3
    check_text_env(sys.modules["corridor"].Corridor)
    assert len((block("python") + block("yaml")).splitlines()) < 40
