"""Processes that would wait for one another forever are told so before they do."""

from pathlib import Path

import lightning as L
import pytest

from opdlight.config.trainer import BY_HAND, LAUNCHERS, check_nodes, check_torchrun
from opdlight.errors import ConfigError
from opdlight.train import resume
from opdlight.train.resume import SameStart


@pytest.mark.parametrize("mine", ["step-00000004", None])
def test_not_all_find_the_checkpoint_of_the_first(mine: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    start = SameStart(Path("run"), Path("run/checkpoints") / mine if mine else None)
    for found in (["step-00000004"] * 3, [None] * 3):
        monkeypatch.setattr(resume, "all_gather", lambda name, found=found: found)
        start.setup(L.Trainer(accelerator="cpu", logger=False), L.LightningModule(), "fit")
    monkeypatch.setattr(resume, "all_gather", lambda name: ["step-00000004", "step-00000004", None])
    with pytest.raises(ConfigError, match=r"`run_dir` to be on a disk that all machines share.*rank 2 finds None"):
        start.setup(L.Trainer(accelerator="cpu", logger=False), L.LightningModule(), "fit")


def test_several_nodes_need_to_know_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LAUNCHERS, *BY_HAND):
        monkeypatch.delenv(name, raising=False)
    check_nodes(1)
    monkeypatch.setenv("NODE_RANK", "0")
    with pytest.raises(ConfigError, match=r"`trainer.num_nodes` to be 1, or .*got '2 without MASTER_ADDR, MASTER_PORT"):
        check_nodes(2)
    monkeypatch.setenv("MASTER_ADDR", "first")
    monkeypatch.setenv("MASTER_PORT", "29500")
    check_nodes(2)
    for name in BY_HAND:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_PROCID", "3")
    check_nodes(2)


def test_the_processes_of_torchrun_are_those_of_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    check_torchrun(2, 1)
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    for devices in (8, list(range(8)), -1, "auto"):
        check_torchrun(devices, 4)
    for devices in (2, [0, 1]):
        with pytest.raises(ConfigError, match=r"`trainer.devices` to be 8, as many as torchrun has started here"):
            check_torchrun(devices, 4)
    with pytest.raises(ConfigError, match=r"`trainer.num_nodes` to be 4, .*got 1"):
        check_torchrun(8, 1)
