"""A bfloat16 forward pass of a float32 student: where autocast is on, and what stays float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from opdlight.errors import ConfigError
from opdlight.losses import SupportMatching
from opdlight.models import Student, Teacher, Teachers, lm_head
from opdlight.models.backbone import checkpoint_layers
from tests.distillation.one_update import fit, parts
from tests.fakes import CheckpointedLayers
from tests.models.architectures import ARCHITECTURES, full_logits, random_batch, save

BF16 = torch.bfloat16
BATCH = random_batch([12, 7, 9])


@contextmanager
def recorded(of: Any, name: str) -> Iterator[list[bool]]:
    """Whether autocast was on in each call of `of.name`."""
    found, call = [], getattr(of, name)

    def recording(*args: Any, **kwargs: Any) -> Any:
        found.append(torch.is_autocast_enabled("cpu"))
        return call(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of, name, recording)
        yield found


def test_autocast_is_around_the_student_s_forward_pass_only(tmp_path: Path) -> None:
    model, other = save(tmp_path / "models" / "a"), save(tmp_path / "models" / "b", seed=1)
    module, data, engine = parts((model, other), loss=SupportMatching(k=5), student={"compute_dtype": "bfloat16"})
    teacher = module.teachers.distinct[0]
    assert isinstance(teacher, Teacher)
    make = module.make_optimizer

    def optimizer(weights: Any) -> torch.optim.Optimizer:
        made = make(weights)
        made.register_step_pre_hook(lambda *_: stepped.append(torch.is_autocast_enabled("cpu")))
        return made

    stepped: list[bool] = []
    module.make_optimizer = optimizer
    with (
        recorded(module.student.model.get_decoder(), "forward") as student,
        recorded(teacher.model.get_decoder(), "forward") as scored,
        recorded(lm_head.LMHead, "logits") as heads,
        recorded(SupportMatching, "__call__") as compared,
        recorded(type(engine), "update_weights") as published,
    ):
        fit(module, data, tmp_path)
    assert set(student) == {True}
    for outside in (scored, heads, compared, published, stepped):
        assert set(outside) == {False}
    assert {w.dtype for w in module.student.parameters()} == {torch.float32}


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_hidden_states_are_bfloat16_and_gradients_float32(architecture: str, tmp_path: Path) -> None:
    folder = save(tmp_path, architecture)
    student, fine = Student(folder, compute_dtype="bfloat16"), Student(folder)
    hidden, exact = student.hidden(BATCH), fine.hidden(BATCH)
    assert hidden.dtype is BF16
    assert 1e-4 < float(((hidden - exact).norm() / exact.norm()).detach()) < 0.05
    head = student.head()
    assert head.weight.dtype is BF16
    logits = lm_head.support_logits(hidden, head, BATCH.target_ids[:, None])
    assert logits.dtype is torch.float32
    logits.sum().backward()
    lm_head.support_logits(exact, fine.head(), BATCH.target_ids[:, None]).sum().backward()
    grads = [w.grad for w in student.parameters() if w.grad is not None]
    assert {g.dtype for g in grads} == {torch.float32}
    mine, theirs = (torch.cat([w.grad.flatten() for w in each.parameters()]) for each in (student, fine))  # type: ignore[union-attr]
    assert float(torch.cosine_similarity(mine, theirs, dim=0)) > 0.97


def gradients(student: Student) -> list[Tensor]:
    student.zero_grad()
    student.hidden(BATCH).float().square().mean().backward()
    return [p.grad for p in student.trainable_parameters() if p.grad is not None]


def test_recomputed_layers_and_new_weights_leave_nothing_behind(tmp_path: Path) -> None:
    """No cast of a weight survives: neither the optimizer's change in place, nor a layer's second computation."""
    folder = save(tmp_path / "models" / "a")
    student, checkpointed = (Student(folder, compute_dtype="bfloat16") for _ in range(2))
    checkpoint_layers(checkpointed.model)
    for step in range(2):
        expected, got = gradients(student), gradients(checkpointed)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(got, expected, strict=True)), step
        for each in (student, checkpointed):
            torch.optim.SGD(each.parameters(), lr=0.3).step()
    fresh = Student(folder, compute_dtype="bfloat16")
    assert not torch.equal(fresh.hidden(BATCH), student.hidden(BATCH))
    fresh.load_state_dict(student.state_dict())
    assert torch.equal(fresh.hidden(BATCH), student.hidden(BATCH))


def test_checkpointed_layers_are_checkpointed_in_training(tmp_path: Path) -> None:
    folder = save(tmp_path / "models" / "a")
    both = {"compute_dtype": "bfloat16", "gradient_checkpointing": True}
    module, data, _ = parts((folder, folder), student=both)
    fit(module, data, tmp_path, watch=[CheckpointedLayers()])  # which raises where some layer was not


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("lora", [None, {"r": 2, "lora_alpha": 4}], ids=["full", "lora"])
def test_a_divided_student_computes_as_a_bfloat16_model_and_keeps_float32_weights(
    lora: dict[str, int] | None, recompute: bool, mesh: DeviceMesh, tmp_path: Path
) -> None:
    folder = save(tmp_path)
    student = Student(folder, compute_dtype="bfloat16", lora=lora, gradient_checkpointing=recompute)
    student.shard(mesh)
    hidden = student.hidden(BATCH)
    assert torch.equal(hidden, Teacher(folder, "bfloat16")(BATCH))  # to the bit: what equals the teacher stays
    assert student.head().weight.dtype is BF16
    computed = [0]
    layer = next(m for m in student.modules() if isinstance(m, GradientCheckpointingLayer))
    layer.register_forward_pre_hook(lambda *_: computed.__setitem__(0, computed[0] + 1))
    lm_head.log_normaliser(hidden, student.head(), chunk=2).sum().backward()
    assert computed == [int(recompute)]
    for name, weight in student.named_parameters():
        assert weight.dtype is (torch.float32 if weight.requires_grad else BF16), name
        assert isinstance(weight, DTensor)
        if weight.requires_grad and "lora_A" not in name:  # of which the gradient is 0 at the start
            assert isinstance(weight.grad, DTensor), name
            assert weight.grad.dtype is torch.float32
            assert bool(weight.grad.full_tensor().any()), name


def test_dora_is_not_divided(mesh: DeviceMesh, tmp_path: Path) -> None:
    student = Student(save(tmp_path), lora={"r": 2, "use_dora": True})
    with pytest.raises(ConfigError, match=r"`model\.student\.lora\.use_dora` to be false beside trainer=fsdp"):
        student.shard(mesh)


@pytest.mark.parametrize("lora", [None, {"r": 2, "lora_alpha": 4}], ids=["full", "lora"])
def test_frozen_bases_are_stored_in_the_compute_dtype(lora: dict[str, int] | None, tmp_path: Path) -> None:
    folder = save(tmp_path)
    student = Student(folder, compute_dtype="bfloat16", lora=lora)
    trained = {w.dtype for w in student.trainable_parameters()}
    frozen = {w.dtype for w in student.parameters() if not w.requires_grad}
    assert trained == {torch.float32}
    assert frozen == ({BF16} if lora else set())
    if lora:  # no autocast: the adapters, which are 0, are computed in float32 beside a plain bfloat16 model
        teachers = Teachers({"a": folder}, student, partial(Teacher, dtype="bfloat16"))
        assert torch.equal(student.hidden(BATCH), teachers.distinct[0](BATCH))  # type: ignore[operator]
    assert full_logits(student.model, BATCH).isfinite().all()


def test_other_dtypes_are_refused_by_name(tmp_path: Path) -> None:
    folder = save(tmp_path)
    for dtype, compute in (("float32", "float16"), ("bfloat16", "float32")):
        with pytest.raises(ConfigError, match=rf"`model\.compute_dtype` to be bfloat16 or {dtype}, as stored"):
            Student(folder, dtype, compute)
