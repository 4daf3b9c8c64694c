"""bfloat16: which weights a step moves, and what the engine and the disk get of small adapters."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from opdlight.distillation.optim import check_optimizer
from opdlight.errors import ConfigError
from opdlight.models import Student
from opdlight.models.lm_head import token_logprobs
from opdlight.models.loading import load_model
from opdlight.models.precision import bfloat16_share, movable
from tests.models.architectures import full_logits, random_batch, save
from tests.models.test_lora import LORA, adapted

BF16 = torch.bfloat16


def test_what_a_step_moves_is_what_adding_it_moves() -> None:
    """The slow reference: the neighbours of a number on its grid, and the middle between them."""
    weights = torch.randn(400, generator=torch.Generator().manual_seed(1)).to(BF16)
    for step in (1e-4, 1e-3, 3e-3):
        moved = 0
        for w in weights:
            for direction in (torch.inf, -torch.inf):
                neighbour = torch.nextafter(w, torch.tensor(direction, dtype=BF16))
                moved += step > abs(float(neighbour) - float(w)) / 2
        assert movable([weights], step) == moved / 800
    assert movable([weights.float()], 1e-6) == 1.0
    assert movable([torch.zeros(3, dtype=BF16)], 1e-9) == 1.0  # around 0 the grid is fine


@pytest.mark.parametrize(("dtype", "learning_rate"), [("bfloat16", 2e-6), ("bfloat16", 5e-4), ("float32", 2e-6)])
def test_the_share_is_that_of_real_steps_of_adamw(dtype: str, learning_rate: float) -> None:
    student, batch = Student("lab/student", dtype), random_batch([60, 50], ids=60)
    before = [w.detach().clone() for w in student.trainable_parameters()]
    optimizer = torch.optim.AdamW(student.trainable_parameters(), lr=learning_rate, weight_decay=0.0)
    for _ in range(5):
        (-token_logprobs(student.hidden(batch), student.head(), batch.target_ids, 1.0)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = sum(int((w != b).sum()) for w, b in zip(student.trainable_parameters(), before, strict=True))
    share = moved / sum(b.numel() for b in before)
    if dtype == "float32":
        assert bfloat16_share(student, learning_rate) is None
        assert share > 0.9
    else:
        expected = movable(before, learning_rate)
        assert share == pytest.approx(expected, rel=0.1)
        assert (expected < 0.02) == (learning_rate == 2e-6)  # 1.0 % and 97 %


def test_bfloat16_without_adapters_is_an_error_or_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    student = Student("lab/student", "bfloat16")
    small, large, sgd = (
        partial(torch.optim.AdamW, lr=2e-6),
        partial(torch.optim.AdamW, lr=5e-4),
        partial(torch.optim.SGD, lr=2e-6),
    )  # whose steps are as large as the gradient
    with pytest.raises(
        ConfigError, match=r"`model\.dtype` to be float32, because one step .* 2e-06 can move 1\.1 % of"
    ):
        check_optimizer(small, student, warn=True)
    check_optimizer(large, student, warn=True)
    assert "warning: one step of the learning rate 0.0005 can move 97.2 %" in capsys.readouterr().out
    check_optimizer(sgd, student, warn=True)
    assert "warning: one step" in capsys.readouterr().out
    check_optimizer(large, student, warn=False)  # where the doctor warns
    check_optimizer(small, Student("lab/student", "bfloat16", lora=LORA), warn=True)
    assert not capsys.readouterr().out


@torch.no_grad()
def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))


def rounded_base(folder: str) -> Any:
    """The bfloat16 base, computed in float32."""
    return load_model(folder, "bfloat16").float()


@pytest.mark.parametrize("size", [1e-5, 1e-4, 1e-3])
def test_a_small_adapter_on_bfloat16_arrives(size: float, tmp_path: Path) -> None:
    """The change of the logits that is published and saved is that of base and adapter computed in float32."""
    folder, batch = save(tmp_path / "base", "llama-tied"), random_batch([12, 9])
    student, published, grid = adapted(folder, {}, "bfloat16", size), rounded_base(folder), rounded_base(folder)
    start = full_logits(published, batch)
    student.save(tmp_path / "saved")
    published.load_state_dict(dict(student.named_weights()), strict=False)
    grid.load_state_dict({n: w.to(BF16).float() for n, w in student.named_weights()}, strict=False)  # as it was before
    changed = full_logits(student.model.float(), batch) - start
    for model in (published, load_model(tmp_path / "saved", "float32")):
        model.tie_weights()
        assert cosine(full_logits(model, batch) - start, changed) > 0.999
    grid.tie_weights()
    if size < 1e-3:
        assert cosine(full_logits(grid, batch) - start, changed) < 0.9


def test_a_saved_folder_says_that_it_is_float32(tmp_path: Path) -> None:
    adapted(save(tmp_path / "base"), {}, dtype="bfloat16").save(tmp_path / "saved")
    assert {w.dtype for w in load_file(tmp_path / "saved" / "model.safetensors").values()} == {torch.float32}
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == "float32"
    Student(save(tmp_path / "base2"), dtype="bfloat16").save(tmp_path / "full")  # trained in full: as it is
    assert json.loads((tmp_path / "full" / "config.json").read_text())["dtype"] == "bfloat16"
