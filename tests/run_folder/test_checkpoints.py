"""Checkpoint folders are read as they were written, are written atomically, and execute no code."""

import itertools
import json
import os
import pickle
import resource
import signal
import threading
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from opdlight.callbacks import Checkpoints
from opdlight.errors import CheckpointError
from opdlight.run_folder import checkpoint_io
from opdlight.run_folder.checkpoint_io import CheckpointFolder
from opdlight.run_folder.checkpoints import (
    check_fits,
    fingerprint,
    list_checkpoints,
    newest,
    read_manifest,
    verify,
)
from tests.distillation.one_update import parts


def content() -> dict[str, Any]:
    tied = torch.arange(6.0).reshape(2, 3)
    return {
        "state_dict": {"a": tied, "b": tied, "c": torch.randn(3, 2).T},  # tied, and not contiguous
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}}],
        "callbacks": {"Alarms": {"count": {("rule", "key"): 2}}},
        "updates": 7,
        "records": {"metrics.csv": 4},
    }


def save(checkpoint: dict[str, Any], path: Path) -> bool:
    """Write a checkpoint; False if that was not possible."""
    io = CheckpointFolder()
    io.save_checkpoint(checkpoint, path)
    return io.wait()


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    written = content()
    save(written, tmp_path / "step-1")
    found = CheckpointFolder().load_checkpoint(tmp_path / "step-1")
    assert found.keys() == written.keys()
    for name, weight in written["state_dict"].items():
        assert torch.equal(found["state_dict"][name], weight)
    assert found["callbacks"] == written["callbacks"]
    state = found["optimizer_states"][0]["state"][0]
    assert torch.equal(state["exp_avg"], torch.ones(2)) and state["step"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]
    manifest = read_manifest(tmp_path / "step-1")
    assert (manifest["updates"], manifest["records"]) == (7, {"metrics.csv": 4})


class Attack:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch /tmp/should-not-exist",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "step-1"
    save(content(), folder)
    torch.save({"updates": Attack()}, folder / "state.pt")
    manifest = read_manifest(folder)
    with pytest.raises(CheckpointError, match=r"step-1 is damaged: expected state.pt to be"):
        verify(folder)
    del manifest["files"]["state.pt"]  # whoever can write the file can write the manifest, too
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"has no readable manifest.json \(KeyError: 'state.pt'\)"):
        verify(folder)
    manifest["files"]["state.pt"] = fingerprint(folder / "state.pt")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        CheckpointFolder().load_checkpoint(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt"])
@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_damage_is_found(name: str, damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "step-1"
    save(content(), folder)
    verify(folder)
    data = (folder / name).read_bytes()
    if damage == "missing":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(data[:-1] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"lacks {name}" if damage == "missing" else f"expected {name} to be"):
        verify(folder)


def test_the_newest_sound_one_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert newest(tmp_path) is None
    folders = [tmp_path / "checkpoints" / f"step-0000000{n}" for n in (2, 4, 6)]
    for folder in folders:
        save(content(), folder)
    (folders[2] / "manifest.json").write_text("{")
    assert newest(tmp_path, first=False) == folders[1]
    assert capsys.readouterr().out == ""
    assert newest(tmp_path) == folders[1]
    assert "step-00000006 has no readable manifest.json" in capsys.readouterr().out
    assert newest(tmp_path) == folders[1]  # the damaged one is set aside
    assert capsys.readouterr().out == ""


def test_one_of_another_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-00000002"
    save(content(), folder)
    manifest = read_manifest(folder)
    del manifest["format"]  # the first version named none
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"was written by another version of opdlight .format 1, this one reads"):
        newest(tmp_path)
    assert list_checkpoints(tmp_path) == [folder]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("state.pt", None, "lacks state.pt"),
        ("manifest.json", None, "has no readable manifest.json"),
        ("manifest.json", "{", "has no readable manifest.json"),
        ("manifest.json", "[]", "has no readable manifest.json"),
        ("manifest.json", '{"files": {}, "records": {}}', "has no readable manifest.json"),
    ],
)
def test_without_a_sound_one_it_refuses_each_time(name: str, damage: str | None, message: str, tmp_path: Path) -> None:
    folders = [tmp_path / "checkpoints" / f"step-0000000{n}" for n in (2, 4)]
    for folder in folders:
        save(content(), folder)
        (folder / name).unlink()
        if damage is not None:
            (folder / name).write_text(damage)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"are damaged: it cannot be resumed.*step-00000004 {message}"):
            newest(tmp_path)
        assert sorted((tmp_path / "checkpoints").iterdir()) == folders, "they are left as they were"
    for folder in folders:  # as versions before this one left them
        folder.rename(folder.with_name(f"damaged-{folder.name}"))
    with pytest.raises(CheckpointError, match="are damaged: it cannot be resumed"):
        newest(tmp_path)


def test_a_checkpoint_of_another_model_is_one_error(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    save({**content(), "state_dict": model.state_dict()}, tmp_path / "step-1")
    check_fits(tmp_path / "step-1", model)
    for other, message in [
        (torch.nn.Sequential(torch.nn.Linear(2, 4)), r"expected 0.bias to be \(4,\), but got \(3,\)"),
        (model[:1], r"expected 1.bias to be absent, but got \(1,\)"),
        (torch.nn.Sequential(*model, torch.nn.Linear(1, 1)), r"expected 2.bias to be \(1,\), but got nothing"),
    ]:
        with pytest.raises(CheckpointError, match=f"is of another model: {message}.*`model.student`"):
            check_fits(tmp_path / "step-1", other)
    model.requires_grad_(False)
    save({**content(), "state_dict": {}}, tmp_path / "step-2")
    check_fits(tmp_path / "step-2", model)  # what is frozen is in no checkpoint


@pytest.mark.parametrize("large", ["weights.safetensors", "state.pt"])
def test_a_full_disk_leaves_a_message_and_nothing_else(
    large: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(content(), tmp_path / "step-1")
    checkpoint = content()
    checkpoint["state_dict" if "weights" in large else "callbacks"]["large"] = torch.zeros(2**18)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, before[1]))  # bytes of a file, half of what is needed
    try:
        assert not save(checkpoint, tmp_path / "step-2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]
    assert "step-2 could not be written (" in capsys.readouterr().out


class Held:
    """A `write` that waits until it may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_go, write = threading.Event(), checkpoint_io.write

        def held(*args: Any) -> bool:
            self.may_go.wait()
            return write(*args)

        monkeypatch.setattr(checkpoint_io, "write", held)


def test_what_changes_while_it_is_written_is_not_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, written, io = Held(monkeypatch), content(), CheckpointFolder()
    io.save_checkpoint(written, tmp_path / "step-1")
    assert not list(tmp_path.iterdir())  # it is there when it is complete
    before = {name: weight.clone() for name, weight in written["state_dict"].items()}
    for weight in written["state_dict"].values():
        weight.add_(1)
    written["optimizer_states"][0]["state"][0]["exp_avg"].zero_()
    written["callbacks"]["Alarms"]["count"]["rule", "key"] = 3
    held.may_go.set()
    assert io.wait()
    found = io.load_checkpoint(tmp_path / "step-1")
    assert all(torch.equal(found["state_dict"][name], weight) for name, weight in before.items())
    assert torch.equal(found["optimizer_states"][0]["state"][0]["exp_avg"], torch.ones(2))
    assert found["callbacks"] == {"Alarms": {"count": {("rule", "key"): 2}}}


def test_a_rank_that_loads_it_holds_no_copy(tmp_path: Path) -> None:
    save(content(), tmp_path / "step-1")
    found = CheckpointFolder().load_checkpoint(tmp_path / "step-1")
    mapped = {"weights.safetensors": found["state_dict"]["c"]}
    mapped["state.pt"] = found["optimizer_states"][0]["state"][0]["exp_avg"]
    for name, tensor in mapped.items():
        ranges = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(name)]
        bounds = [[int(bound, 16) for bound in text.split("-")] for text in ranges]
        assert any(start <= tensor.data_ptr() < end for start, end in bounds), f"{name} is not mapped"


def test_a_mistake_in_writing_is_raised_by_the_next_one(tmp_path: Path) -> None:
    io = CheckpointFolder()
    io.save_checkpoint({**content(), "callbacks": lambda: None}, tmp_path / "step-1")
    with pytest.raises(AttributeError, match="lambda"):
        io.save_checkpoint(content(), tmp_path / "step-2")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_written_is_counted_and_the_run_goes_on(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, data, _ = parts(folders)
    save, calls = torch.save, itertools.count()

    def sometimes_full(*args: Any, **kwargs: Any) -> None:
        if next(calls) == 1:
            raise OSError(28, "No space left on device")
        save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", sometimes_full)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[Checkpoints(str(tmp_path), every=1, keep=9)],
        logger=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        plugins=[CheckpointFolder()],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert module.updates == 3
    assert float(trainer.callback_metrics["checkpoint/failed"]) == 1
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000000", "step-00000002", "step-00000003-end"]
    assert "step-00000001 could not be written ([Errno 28] No space left on device)" in capsys.readouterr().out


def test_what_a_killed_run_could_not_clear_away_goes_even_if_nothing_is_left_to_train(
    folders: tuple[str, str], tmp_path: Path
) -> None:
    for name in ("step-00000002", "step-00000003", "step-00000003-end", ".step-00000003-end"):
        save(content(), tmp_path / "checkpoints" / name)
    module, data, _ = parts(folders)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=0, callbacks=[Checkpoints(str(tmp_path), keep=2)], num_sanity_val_steps=0,
        logger=False, enable_progress_bar=False, enable_model_summary=False, plugins=[CheckpointFolder()],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000003", "step-00000003-end"]
