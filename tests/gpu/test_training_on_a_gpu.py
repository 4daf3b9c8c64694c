"""Updates on CUDA beside those on the CPU, one process each: plain, DDP, FSDP2 over NCCL; and a lack of memory."""

import gc
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import load_file

from opdlight.callbacks import Checkpoints
from opdlight.callbacks.throughput import GIB
from opdlight.distillation.module import OnPolicyDistillation
from opdlight.distillation.sharded import ShardedStrategy
from opdlight.losses import Loss, SampledToken, SupportMatching
from opdlight.run_folder.checkpoint_io import CheckpointFolder
from opdlight.run_folder.checkpoints import list_checkpoints
from tests.distillation.one_update import fit, parts
from tests.distillation.ranks import run_ranks
from tests.tiny_models import save_tiny

LOSSES: dict[str, Loss] = {
    "top-K": SupportMatching(k=8),
    "token": SampledToken(),
    "full": SupportMatching(support="full_vocabulary"),
}


class Logged(L.Callback):
    """Keeps what was logged of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def trained(
    folders: tuple[str, str],
    folder: Path,
    *,
    loss: Loss | None = None,
    student: dict[str, Any] | None = None,
    placement: Any = "replicated",
    micro_batch_tokens: int = 40,
    groups: int = 4,
    resume: Path | None = None,
    **settings: Any,
) -> tuple[OnPolicyDistillation, list[dict[str, float]]]:
    """Three updates by AdamW, with a checkpoint before each; what was logged."""
    module, data, _ = parts(
        folders,
        loss=loss,
        answer=lambda prompt: [7 + sum(prompt) % 90] * (1 + sum(prompt) % 5) + [2],
        groups=groups,
        micro_batch_tokens=micro_batch_tokens,
        student=student,
    )
    module.teacher_placement = placement
    module.make_optimizer = partial(torch.optim.AdamW, lr=0.02, eps=1e-3)  # eps is above roundings of a gradient of 0
    module.max_grad_norm = 0.05
    keeper, logged = Checkpoints(str(folder), every=1, keep=9), Logged()
    settings |= {"plugins": [CheckpointFolder()], "limit_val_batches": 0, "enable_checkpointing": True}
    fit(module, data, folder, [keeper, logged], resume, **settings)
    module.student.save(folder / "student")
    return module, logged.steps


@pytest.fixture(scope="module", params=list(LOSSES))
def on_the_cpu(
    request: pytest.FixtureRequest, folders: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Loss, Path]:
    folder = tmp_path_factory.mktemp("cpu")
    trained(folders, folder, loss=LOSSES[request.param])
    return LOSSES[request.param], folder


def assert_same_student(one: Path, two: Path, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    mine, theirs = (load_file(folder / "student" / "model.safetensors") for folder in (one, two))
    assert mine.keys() == theirs.keys()
    for name, weight in mine.items():
        torch.testing.assert_close(theirs[name], weight, rtol=rtol, atol=atol, msg=partial("{}: {}".format, name))


@pytest.mark.parametrize("placement", ["replicated", "offloaded"])
def test_a_run_on_cuda_learns_what_one_on_the_cpu_learns(
    placement: str, on_the_cpu: tuple[Loss, Path], folders: tuple[str, str], tmp_path: Path
) -> None:
    _, logged = trained(folders, tmp_path, loss=on_the_cpu[0], placement=placement, accelerator="gpu", devices=1)
    assert_same_student(on_the_cpu[1], tmp_path)
    assert all(0 < step["memory/gpu"] < 1 and 0 < step["throughput/mfu"] < 1 for step in logged), logged[-1]


def test_bfloat16_forward_passes_learn_about_the_same(folders: tuple[str, str], tmp_path: Path) -> None:
    module, _ = trained(folders, tmp_path, student={"compute_dtype": "bfloat16"}, accelerator="gpu", devices=1)
    assert {w.dtype for w in module.student.parameters()} == {torch.float32}
    trained(folders, tmp_path / "cpu", student={"compute_dtype": "bfloat16"})
    start, mine, theirs = (
        torch.cat([w.flatten() for w in load_file(folder / "model.safetensors").values()])
        for folder in (Path(folders[0]), tmp_path / "student", tmp_path / "cpu" / "student")
    )
    assert float(torch.cosine_similarity(mine - start, theirs - start, dim=0)) > 0.98


def test_a_resumed_run_is_the_run_that_was_not_stopped(folders: tuple[str, str], tmp_path: Path) -> None:
    trained(folders, tmp_path / "whole", accelerator="gpu", devices=1)
    trained(folders, tmp_path / "again", accelerator="gpu", devices=1)
    middle = next(c for c in list_checkpoints(tmp_path / "whole") if c.name == "step-00000001")
    trained(folders, tmp_path / "resumed", resume=middle, accelerator="gpu", devices=1)
    assert_same_student(tmp_path / "whole", tmp_path / "again", rtol=0, atol=0)
    assert_same_student(tmp_path / "whole", tmp_path / "resumed", rtol=0, atol=0)
    trained(folders, tmp_path / "cpu", resume=middle)  # and goes on without a GPU
    assert_same_student(tmp_path / "whole", tmp_path / "cpu")


def strategy(name: str) -> Any:
    return ShardedStrategy() if name == "fsdp" else DDPStrategy(process_group_backend="nccl")


def alone(rank: int, folders: tuple[str, str], folder: Path, name: str, placement: str) -> None:
    """One process of a strategy for several, which collects over NCCL."""
    settings: dict[str, Any] = {"accelerator": "gpu", "devices": 1, "placement": placement}
    trained(folders, folder, strategy=strategy(name), **settings)
    assert torch.distributed.get_backend() == "nccl" or "nccl" in str(torch.distributed.get_backend_config())
    assert torch.cuda.max_memory_allocated() > 0  # Lightning has brought the weights of DDP back to the CPU
    (folder / "says").write_text(f"{torch.cuda.max_memory_allocated() / GIB:.3f} GiB")


def goes_on(rank: int, folders: tuple[str, str], folder: Path, name: str, checkpoint: Path) -> None:
    trained(folders, folder, strategy=strategy(name), resume=checkpoint, accelerator="gpu", devices=1)


@pytest.mark.parametrize(("name", "placement"), [("fsdp", "sharded"), ("fsdp", "offloaded"), ("fsdp", "replicated"),
                                                 ("ddp", "replicated"), ("ddp", "offloaded")])  # fmt: skip
def test_strategies_of_several_processes_over_nccl(
    name: str, placement: str, folders: tuple[str, str], tmp_path: Path
) -> None:
    trained(folders, tmp_path / "cpu")
    run_ranks(alone, folders, tmp_path / name, name, placement, nodes=1, each=1, logs=tmp_path / "logs")
    assert_same_student(tmp_path / "cpu", tmp_path / name)
    if placement != "offloaded":
        middle = next(c for c in list_checkpoints(tmp_path / name) if c.name == "step-00000001")
        run_ranks(goes_on, folders, tmp_path / "on", name, middle, nodes=1, each=1, logs=tmp_path / "logs")
        assert_same_student(tmp_path / "cpu", tmp_path / "on")


def test_a_lack_of_memory_costs_a_repetition_and_changes_nothing(tmp_path: Path) -> None:
    """A real one: PyTorch's allocator gets less than all rows in one micro-batch need, and more than half of them."""
    folders = str(save_tiny(tmp_path / "a", 1, hidden=256)), str(save_tiny(tmp_path / "b", 2, hidden=256))
    settings: dict[str, Any] = {"groups": 96, "accelerator": "gpu", "devices": 1}

    def reserved(micro_batch_tokens: int) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        name = tmp_path / str(micro_batch_tokens)
        module, _ = trained(folders, name, micro_batch_tokens=micro_batch_tokens, **settings)
        assert module.out_of_memory.count == 0
        found = torch.cuda.max_memory_reserved()
        del module
        gc.collect()  # a trainer and its module hold each other
        return found

    most, least = reserved(10**6), reserved(1000)
    assert most > 1.5 * least, (most, least)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((most + least) / 2 / total)
    try:
        module, logged = trained(folders, tmp_path / "limited", micro_batch_tokens=10**6, **settings)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert module.out_of_memory.count > 0
    assert logged[-1]["optimizer/out_of_memory"] == module.out_of_memory.count
    assert_same_student(tmp_path / "1000000", tmp_path / "limited", atol=1e-5)
