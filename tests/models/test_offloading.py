"""Teachers in the CPU's memory: lent to a device while they score, and left alone by `.to(device)`."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from opdlight.callbacks import TrajectoryRecorder
from opdlight.losses import Needs, SampledToken
from opdlight.models import ScoreRequest, Student, Teacher, Teachers
from opdlight.models.offloading import Offloaded
from tests.distillation.one_update import fit, parts
from tests.models.architectures import random_batch, save

BATCH, META = random_batch([12, 7, 9]), torch.device("meta")


def tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


@pytest.mark.parametrize("architecture", ["llama", "llama-tied"])
def test_copies_are_lent_and_the_originals_come_back(architecture: str, tmp_path: Path) -> None:
    teacher = Teacher(save(tmp_path, architecture))
    before = [(id(t), t.data_ptr()) for t in tensors(teacher)]
    scores, offloaded = teacher(BATCH), Offloaded(teacher)
    offloaded.lend(META)  # the CPU has no other device
    assert {t.device for t in tensors(teacher)} == {META}
    assert teacher.device == META
    copies = [id(t) for t in tensors(teacher)]
    assert len(copies) == len(before)  # tied weights stay one
    offloaded.lend(META)  # as each further micro-batch of a step does
    assert [id(t) for t in tensors(teacher)] == copies
    offloaded.take_back()
    assert [(id(t), t.data_ptr()) for t in tensors(teacher)] == before
    assert torch.equal(teacher(BATCH), scores)


@pytest.mark.parametrize("placement", ["replicated", "sharded", "offloaded"])
def test_to_device_moves_whole_teachers_unless_they_are_offloaded(placement: Any, tmp_path: Path) -> None:
    folder = save(tmp_path)
    teachers = Teachers({"a": folder}, Student(folder))
    teachers.place(placement, None)  # one process, or DDP: nothing is divided
    moved = copy.deepcopy(teachers).to("meta")
    devices = {t.device.type for t in tensors(moved.distinct[0])}  # type: ignore[arg-type]
    assert devices == {"cpu" if placement == "offloaded" else "meta"}


def test_a_student_frees_what_a_forward_pass_has_gathered(mesh: DeviceMesh, tmp_path: Path) -> None:
    student = Student(save(tmp_path))
    student.free_gathered()  # nothing is gathered without FSDP
    student.shard(mesh)
    with torch.no_grad():
        student(BATCH)
    assert not isinstance(student.head().weight, DTensor)  # it stays, for the head's products
    student.free_gathered()
    assert isinstance(student.head().weight, DTensor)


def test_to_device_leaves_fsdp_s_shares_in_the_cpu_s_memory(mesh: DeviceMesh, tmp_path: Path) -> None:
    """FSDP2 with CPUOffloadPolicy refuses shares that are on a device."""
    folder = save(tmp_path)
    student = Student(folder)
    for placement in ("sharded", "offloaded"):
        teachers = Teachers({"a": folder}, student)
        request = ScoreRequest(needs=Needs(sampled=True), shared=teachers.shared_vocabulary)
        expected = teachers.score(BATCH, request).sampled
        teachers.place(placement, mesh)  # type: ignore[arg-type]
        assert torch.equal(teachers.score(BATCH, request).sampled, expected)  # type: ignore[arg-type]
        teacher = teachers.distinct[0]
        assert isinstance(teacher, Teacher)
        assert all(isinstance(w, DTensor) for w in teacher.parameters())
        seen: list[Tensor] = []

        def move(tensor: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(tensor)
            return tensor

        teachers._apply(move)
        assert bool(seen) == (placement == "sharded")


def test_a_step_takes_the_copies_back_before_the_next_rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are lent once a step, whatever the number of micro-batches, and never during a rollout."""
    model, other = save(tmp_path / "a"), save(tmp_path / "b", seed=1)
    loss = SampledToken(policy="full")
    events: list[str] = []
    for name in ("lend", "take_back"):
        call = getattr(Offloaded, name)

        def recorded(self: Offloaded, *args: Any, name: str = name, call: Any = call) -> None:
            if (name == "lend") == (self.device is None):
                events.append(name)
            call(self, *args)

        monkeypatch.setattr(Offloaded, name, recorded)
    module, data, engine = parts((model, other), loss=loss, micro_batch_tokens=100)
    module.teacher_placement = "offloaded"
    add = engine.add_request
    monkeypatch.setattr(engine, "add_request", lambda request: (events.append("roll out"), add(request)))
    fit(module, data, tmp_path, [TrajectoryRecorder(str(tmp_path), every=9, train=0)], val_check_interval=1)
    kinds = [e for i, e in enumerate(events) if i == 0 or events[i - 1] != e]
    # the teachers score a step, and then the recorded trajectories of each of two tasks' held-out episodes
    assert kinds == [*["roll out", "lend", "take_back"] * 3 * 3][:-1]
    assert events.count("lend") == 3 * 3  # the reference is not asked, and so never lent
