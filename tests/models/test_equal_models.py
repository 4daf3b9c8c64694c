"""A teacher that equals the student moves nothing: value and gradient are 0.0 to the bit, for every loss that says so.

Roundings of 1e-9 would do: AdamW divides a gradient by its own size.
"""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from opdlight.losses import EntropyAware, Loss, token_mean
from opdlight.models import Student, Teacher, Teachers, support_product
from tests.distillation.one_update import fit, parts
from tests.models.architectures import random_batch, save
from tests.models.score_cases import scored

LOSSES: dict[str, Loss] = {p.stem: instantiate(OmegaConf.load(p)) for p in sorted(Path("conf/loss").glob("*.yaml"))}
# theory says not 0: the gradient of Σ_S π stays (truncated, EMA-PG), π is compared with a q that is renormalised, or
# the reward of the environment goes on
NOT_ZERO = {"topk_truncated", "topk_ema_tail", "student_topk_ema_tail", "entropy_aware", "sampled_token_reward"}
ZERO = sorted(LOSSES.keys() - NOT_ZERO)
BATCH = random_batch([12, 7, 9, 20, 5])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def pair(folder: str) -> tuple[Student, Teachers]:
    student = Student(folder)
    return student, Teachers({"a": folder}, student)


@pytest.fixture(params=["union", "gather"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By which product the logits on a support are computed; in small parts, so that there are several."""
    monkeypatch.setattr(support_product, "GATHER_RATIO", 10**9 if request.param == "union" else 0)
    monkeypatch.setattr(support_product, "PART_ELEMENTS", 2000)


def learn(loss: Loss, student: Student, teachers: Teachers, temperature: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    """The losses [N] and the gradients of a micro-batch, as a training step computes them."""
    per_token = loss(scored(student, teachers, loss.needs, BATCH, temperature), BATCH)
    student.zero_grad()
    token_mean(per_token, BATCH.num_tokens).backward()
    gradients = [p.grad for p in student.trainable_parameters() if p.grad is not None]
    assert gradients
    return per_token.detach(), gradients


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", ZERO)
def test_value_and_gradient_are_zero_to_the_bit(name: str, pair: tuple[Student, Teachers]) -> None:
    each, gradients = learn(LOSSES[name], *pair)
    assert not each.any()
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("name", sorted(NOT_ZERO - {"sampled_token_reward"}))
def test_the_others_move_it_as_their_theory_says(name: str, pair: tuple[Student, Teachers]) -> None:
    loss = LOSSES[name]
    if isinstance(loss, EntropyAware):
        loss = EntropyAware(threshold=0.0)
    _, gradients = learn(loss, *pair)
    assert max(float(g.abs().max()) for g in gradients) > 1e-6


SETTINGS: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": "bfloat16"},
    "checkpointing": {"gradient_checkpointing": True},
    "LoRA": {"lora": {"r": 2, "lora_alpha": 4}},
    "LoRA in bfloat16": {"dtype": "bfloat16", "lora": {"r": 2, "lora_alpha": 4}},
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("architecture", "setting"),
    [*(("llama", setting) for setting in SETTINGS), ("gemma2", "checkpointing"), ("granite", "bfloat16")],
)
def test_dtype_adapters_and_checkpointing_change_no_bit(architecture: str, setting: str, tmp_path: Path) -> None:
    model, settings = save(tmp_path, architecture), SETTINGS[setting]
    student = Student(model, **settings).train()
    teachers = Teachers({"a": model}, student, partial(Teacher, dtype=settings.get("dtype", "float32")))
    for name in ("topk_rkl", "full_rkl", "topk_rkl_tail", "student_topk_rkl", "sampled_token"):
        each, gradients = learn(LOSSES[name], student, teachers, temperature=0.7)
        assert not each.any(), name
        assert not any(g.any() for g in gradients), name


@pytest.mark.parametrize("name", ["topk_rkl", "full_rkl", "sampled_token"])
def test_adamw_leaves_the_weights_as_they_are(name: str, folder: str, tmp_path: Path) -> None:
    module, data, _ = parts((folder, folder), loss=LOSSES[name], micro_batch_tokens=100)
    module.make_optimizer = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.0)
    before = {n: w.clone() for n, w in module.student.state_dict().items()}
    trainer = fit(module, data, tmp_path)
    assert module.updates == 3
    assert float(trainer.callback_metrics["loss/train"]) == 0.0
    assert float(trainer.callback_metrics["optimizer/grad_norm"]) == 0.0
    assert all(torch.equal(w, before[n]) for n, w in module.student.state_dict().items())
