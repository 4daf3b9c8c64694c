"""A student that is divided over processes learns what one process learns; its checkpoints are divided as it is."""

import json
import runpy
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageReader

from opdlight.callbacks import Checkpoints
from opdlight.distillation import sharded
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.distillation.sharded import ShardedStrategy
from opdlight.run_folder import checkpoint_io
from opdlight.run_folder.checkpoint_io import CheckpointFolder
from opdlight.run_folder.checkpoints import list_checkpoints, verify
from tests.distillation.one_update import fit, parts
from tests.distillation.ranks import run_ranks


class MicroBatches(L.Callback):
    """The most micro-batches that an update had."""

    def __init__(self) -> None:
        self.most = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.most = max(self.most, *(len(shares) for shares in outputs["step"].shares))


def trained(
    folders: tuple[str, str], folder: Path, resume: Path | None = None, **settings: Any
) -> OnPolicyDistillation:
    """Three updates by AdamW, a checkpoint before each; the student is saved at the end."""
    module, data, _ = parts(
        folders,
        answer=lambda prompt: [7 + sum(prompt) % 90] * (1 + sum(prompt) % 5) + [2],
        groups=4,
        micro_batch_tokens=40,
    )
    module.make_optimizer = partial(torch.optim.AdamW, lr=0.02, eps=1e-3)  # eps is above roundings of a gradient of 0
    module.max_grad_norm = 0.05  # below the norms of this run, which enter the update so
    keeper = Checkpoints(str(folder), every=1, keep=9)
    settings |= {"plugins": [CheckpointFolder()], "limit_val_batches": 0, "enable_checkpointing": True}
    fit(module, data, folder, [keeper, batches := MicroBatches()], resume, **settings)
    assert batches.most > 1  # gradients of several micro-batches add up
    (folder / f"failed-{module.global_rank}").write_text(str(keeper.failed))
    module.student.save(folder / "student")
    return module


@pytest.fixture(scope="module")
def alone(folders: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one process."""
    folder = tmp_path_factory.mktemp("alone")
    trained(folders, folder)
    return folder


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6)


def assert_same_student(one: Path, two: Path) -> None:
    assert_same(*(load_file(folder / "student" / "model.safetensors") for folder in (one, two)))


def on_nodes(rank: int, folders: tuple[str, str], folder: Path) -> None:
    module = trained(folders, folder, strategy=ShardedStrategy(shard_within="node"), num_nodes=2, devices=2)
    weight = module.student.model.lm_head.weight
    placed = {"placements": str(weight.placements), "rows": weight.to_local().shape[0]}
    (folder / f"placed-{rank}.json").write_text(json.dumps(placed))


def resumed(rank: int, folders: tuple[str, str], checkpoint: Path, folder: Path) -> None:
    """Goes on; counts the bytes that this rank reads, and lets the second rank fail to write its share once."""
    read, write, process = 0, checkpoint_io.write_shard, HuggingFaceStorageReader._process_read_request

    def counted(self: Any, file: Any, request: Any, planner: Any) -> None:
        nonlocal read
        read += planner.resolve_tensor(request).nbytes
        process(self, file, request, planner)

    def sometimes_full(pieces: Any, path: Path) -> None:
        if rank == 1 and "step-00000002" in str(path):
            raise OSError(28, "No space left on device")
        write(pieces, path)

    HuggingFaceStorageReader._process_read_request = counted  # type: ignore[method-assign]
    checkpoint_io.write_shard = sometimes_full
    trained(folders, folder, resume=checkpoint, strategy=ShardedStrategy(), devices=3)
    (folder / f"read-{rank}").write_text(str(read))


def test_divided_within_nodes_it_learns_what_one_process_learns_and_goes_on_divided_otherwise(
    folders: tuple[str, str], alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, other = tmp_path / "nodes", tmp_path / "other"
    run_ranks(on_nodes, folders, nodes, nodes=2, each=2, logs=tmp_path / "logs")
    assert_same_student(alone, nodes)
    placed = [json.loads((nodes / f"placed-{rank}.json").read_text()) for rank in range(4)]
    rows = safe_open_rows(alone)
    assert placed == [{"placements": "(Replicate(), Shard(dim=0))", "rows": rows // 2}] * 4

    names = [folder.name for folder in list_checkpoints(alone)]
    assert [folder.name for folder in list_checkpoints(nodes)] == names
    for name in names:  # one process reads what one process has written
        verify(nodes / "checkpoints" / name)
        one, four = (CheckpointFolder().load_checkpoint(folder / "checkpoints" / name) for folder in (alone, nodes))
        assert one.keys() == four.keys()
        assert_same(one["state_dict"], four["state_dict"])
        for number, values in one["optimizer_states"][0]["state"].items():
            assert_same(values, four["optimizer_states"][0]["state"][number])
    checkpoint = nodes / "checkpoints" / "step-00000001"
    shards = [(p.name, p.stat().st_size) for p in sorted(checkpoint.glob("shard-*"))]
    assert [name for name, _ in shards] == ["shard-00000.safetensors", "shard-00001.safetensors"]  # the first node's
    assert shards[0][1] == pytest.approx(shards[1][1], rel=0.01)

    monkeypatch.setattr("sys.argv", ["whole_checkpoint.py", str(checkpoint), str(tmp_path / "whole")])
    runpy.run_path(str(Path(__file__).parents[2] / "tools" / "whole_checkpoint.py"), run_name="__main__")
    assert_same(load_file(tmp_path / "whole" / "weights.safetensors"),
                CheckpointFolder().load_checkpoint(checkpoint)["state_dict"])  # fmt: skip

    said = run_ranks(resumed, folders, checkpoint, other, nodes=1, each=3, logs=tmp_path / "logs")
    assert_same_student(alone, other)
    assert "step-00000002 could not be written (rank 1: [Errno 28] No space left on device)" in said
    assert [folder.name for folder in list_checkpoints(other)] == ["step-00000001", "step-00000003-end"]
    assert [(other / f"failed-{rank}").read_text() for rank in range(3)] == ["1", "1", "1"]
    total = sum(tensor_bytes(checkpoint))
    read = [int((other / f"read-{rank}").read_text()) for rank in range(3)]
    assert sum(read) == total
    assert max(read) < 0.36 * total


def safe_open_rows(run: Path) -> int:
    with safe_open(run / "student" / "model.safetensors", "pt") as file:
        return int(file.get_slice("lm_head.weight").get_shape()[0])


def tensor_bytes(checkpoint: Path) -> list[int]:
    return [tensor.nbytes for path in checkpoint.glob("shard-*") for tensor in load_file(path).values()]


def without_a_common_folder(rank: int, folders: tuple[str, str], folder: Path) -> None:
    """The second rank does not see what the first one makes."""
    is_dir = Path.is_dir
    sharded.Path.is_dir = lambda path: is_dir(path) and not (rank and ".step-seen-" in str(path))  # type: ignore[method-assign]
    trained(folders, folder, strategy=ShardedStrategy(), devices=2)


def from_whole(rank: int, folders: tuple[str, str], checkpoint: Path, folder: Path) -> None:
    trained(folders, folder, resume=checkpoint, strategy=ShardedStrategy(), devices=2)


def test_where_processes_see_no_common_folder_the_first_one_writes_the_whole(
    folders: tuple[str, str], alone: Path, tmp_path: Path
) -> None:
    said = run_ranks(without_a_common_folder, folders, tmp_path / "run", nodes=1, each=2, logs=tmp_path / "logs")
    assert_same_student(alone, tmp_path / "run")
    assert said.count("the first one collects and writes the checkpoints whole") == 1
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000001"
    files = [path.name for path in sorted(checkpoint.iterdir())]
    assert files == ["manifest.json", "state.pt", "weights.safetensors"]
    run_ranks(from_whole, folders, checkpoint, tmp_path / "on", nodes=1, each=2, logs=tmp_path / "logs")
    assert_same_student(alone, tmp_path / "on")
