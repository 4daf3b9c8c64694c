"""Layers that are computed again in the backward pass: they are, wherever a student trains, and gradients stay."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from opdlight.distillation.schedules import learning_rate
from opdlight.errors import ConfigError
from opdlight.models import Student
from opdlight.models.backbone import checkpoint_layers
from opdlight.sft.module import SupervisedFineTuning
from tests.distillation.one_update import fit, parts
from tests.fakes import CheckpointedLayers
from tests.models.architectures import ARCHITECTURES, build, random_batch, save

LORA = {"r": 4, "lora_alpha": 8}


@contextmanager
def computed(student: Student) -> Iterator[list[str]]:
    """The layers, in the order in which their computation begins (the second one may end early)."""
    found: list[str] = []
    layers = [(n, m) for n, m in student.named_modules() if isinstance(m, GradientCheckpointingLayer)]
    hooks = [m.register_forward_pre_hook(lambda *_, name=n: found.append(name)) for n, m in layers]
    yield found
    for hook in hooks:
        hook.remove()


def gradients(student: Student) -> list[Tensor]:
    student.hidden(random_batch([12, 7, 9])).square().mean().backward()
    return [p.grad for p in student.trainable_parameters() if p.grad is not None]


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_layers_are_computed_twice_and_the_gradients_stay(
    architecture: str, lora: dict[str, Any] | None, tmp_path: Path
) -> None:
    folder = save(tmp_path, architecture)
    if lora and architecture == "gpt2":
        lora = lora | {"fan_in_fan_out": True}
    plain, checkpointed = (Student(folder, lora=lora, gradient_checkpointing=on) for on in (False, True))
    for student in (plain, checkpointed):  # LoRA starts with a gradient of 0 in half of its weights
        torch.manual_seed(3)
        for weight in student.trainable_parameters() if lora else ():
            weight.data.normal_(std=0.2)
    assert not any(m.training for m in checkpointed.model.modules() if not isinstance(m, GradientCheckpointingLayer))
    with computed(plain) as once:
        expected = gradients(plain)
    with computed(checkpointed) as twice:
        got = gradients(checkpointed)
    assert sorted(twice) == sorted(once * 2)
    assert len(got) == len(expected) > 4
    assert all(g.any() for g in got)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


def test_without_a_gradient_nothing_is_kept_or_computed_twice(tmp_path: Path) -> None:
    student = Student(save(tmp_path), gradient_checkpointing=True)
    kept: list[Tensor] = []
    with (
        torch.no_grad(),
        computed(student) as layers,
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),  # type: ignore[func-returns-value]
    ):
        student.hidden(random_batch([12]))
    assert len(layers) == 2
    assert not kept


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_less_is_kept_for_the_backward_pass(lora: dict[str, Any] | None, tmp_path: Path) -> None:
    """Bytes of distinct memory that autograd holds between forward and backward, weights aside."""
    folder = save(tmp_path, num_hidden_layers=8)
    bytes_kept = []
    for on in (False, True):
        student = Student(folder, lora=lora, gradient_checkpointing=on)
        weights = {p.untyped_storage().data_ptr() for p in student.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept, weights: set[int] = weights) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            hidden = student.hidden(random_batch([60, 60]))
        bytes_kept.append(sum(kept.values()))
        del hidden
    assert bytes_kept[1] < bytes_kept[0] / 4, bytes_kept


def test_it_happens_in_fit_and_the_updates_stay(folders: tuple[str, str], tmp_path: Path) -> None:
    counted, weights = CheckpointedLayers(), []
    for watch in ([], [counted]):
        module, data, _ = parts(folders, student={"gradient_checkpointing": bool(watch)})
        before = [p.detach().clone() for p in module.student.parameters()]
        fit(module, data, tmp_path, watch=watch)
        weights.append([p.detach() for p in module.student.parameters()])
    assert counted.calls == [3, 3]  # updates of one micro-batch: evaluations count nothing
    assert any(not torch.equal(w, b) for w, b in zip(weights[1], before, strict=True))
    for plain, checkpointed in zip(*weights, strict=True):
        torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-6)


def test_it_happens_in_supervised_fine_tuning(tmp_path: Path) -> None:
    module = SupervisedFineTuning(
        student=Student(save(tmp_path), gradient_checkpointing=True),
        optimizer=partial(torch.optim.SGD, lr=0.1),
        schedule=learning_rate("constant", warmup=0, updates=2),
        max_grad_norm=1.0,
    )
    counted = CheckpointedLayers()
    quiet: dict[str, Any] = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar"], False)
    trainer = L.Trainer(accelerator="cpu", max_steps=2, callbacks=[counted], enable_model_summary=False, **quiet)
    trainer.fit(module, torch.utils.data.DataLoader([[random_batch([9, 5])]] * 2, batch_size=None))
    assert counted.calls == [2, 2]


def test_a_model_that_cannot_do_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(ConfigError, match=r"`model\.student\.gradient_checkpointing` to be false for LlamaForCausalLM"):
        checkpoint_layers(model)


DROPOUT: dict[str, tuple[str, dict[str, float]]] = {
    "attention": ("llama", {"attention_dropout": 0.1}),
    "gpt2": ("gpt2", {"resid_pdrop": 0.1, "embd_pdrop": 0.2}),
    "layerdrop": ("llama", {"layerdrop": 0.1}),
    "jitter": ("llama", {"router_jitter_noise": 0.01}),
}


@pytest.mark.parametrize("case", list(DROPOUT))
def test_dropout_of_the_model_is_refused_with_its_fields(case: str, tmp_path: Path) -> None:
    architecture, fields = DROPOUT[case]
    folder = save(tmp_path, architecture, **fields)
    with pytest.raises(ConfigError, match=r"`model\.student\.model` to be a model without dropout") as error:
        Student(folder)
    assert f"set {', '.join(fields)} to 0 in the config.json" in str(error.value)
    assert "the student that trains must be the policy that has rolled out" in str(error.value)
    assert folder in str(error.value)


def test_dropout_that_no_field_names_is_refused_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    model.model.layers[0].mlp.act_fn = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Dropout(0.25))
    load: Callable[..., Any] = lambda *_, **__: model  # noqa: E731
    monkeypatch.setattr("opdlight.models.student.load_model", load)
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.mlp\.act_fn\.1\.p = 0\.25"):
        Student(save(tmp_path))


def test_dropout_of_heads_that_a_causal_lm_lacks_is_none(tmp_path: Path) -> None:
    Student(save(tmp_path, summary_first_dropout=0.1, classifier_dropout=0.1))


def test_dropout_of_lora_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^Expected `model\.student\.lora\.lora_dropout` to be 0 .*, but got 0\.05"):
        Student(save(tmp_path), lora=LORA | {"lora_dropout": 0.05})
