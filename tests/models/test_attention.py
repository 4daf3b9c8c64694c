"""The implementation of attention that a config names: used, or refused with what there is."""

from pathlib import Path

import pytest
import torch

from opdlight.errors import ConfigError
from opdlight.models import Student, Teacher
from opdlight.models.backbone import hidden_at
from opdlight.models.distinct_tokens import SDPA
from tests.models.architectures import build, random_batch, save

KEY = r"^Expected `model\.attn_implementation` to be null or, for "


def test_student_and_teacher_use_it(tmp_path: Path) -> None:
    folder = save(tmp_path)
    for kind in (Student, Teacher):
        assert kind(folder).model.config._attn_implementation == SDPA  # transformers' own, for distinct tokens, too
        model = kind(folder, attn_implementation="eager").model
        assert model.config._attn_implementation == "eager"
        expected = hidden_at(kind(folder).model, random_batch([9, 5]))
        torch.testing.assert_close(hidden_at(model, random_batch([9, 5])), expected, atol=1e-5, rtol=1e-5)


def test_sdpa_leaves_cudnn_alone_which_would_plan_each_new_shape(tmp_path: Path) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    Student(save(tmp_path))
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("flash", r"but got 'flash'\. There is no such implementation \(a kernel of the Hub is owner/name\)\.$"),
        ("flash_attention_2", "trains on a GPU only, and there is none"),
        ("flex_attention", "trains on a GPU only, and there is none"),
    ],
)
def test_what_is_not_there_is_refused(name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=KEY + rf"LlamaForCausalLM on this machine, one of eager, sdpa, .*{reason}"):
        Student(save(tmp_path), attn_implementation=name)


def test_with_a_gpu_transformers_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    folder, flash = save(tmp_path / "llama"), "flash_attention_2"
    with pytest.raises(
        ConfigError, match=r"one of eager, sdpa, flex_attention, but got 'flash_attention_2'.*installed"
    ):
        Student(folder, compute_dtype="bfloat16", attn_implementation=flash)
    for kind in (Student, Teacher):
        with pytest.raises(ConfigError, match=r"computes in bfloat16: model\.compute_dtype=bfloat16"):
            kind(folder, attn_implementation=flash)
    with pytest.raises(ConfigError, match=r"BloomForCausalLM .* one of eager, but got 'flex_attention'"):
        Student(save(tmp_path / "bloom", "bloom", n_layer=2, n_head=2), attn_implementation="flex_attention")


def test_checks_on_the_cpu_run_with_an_attention_that_runs_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student for a GPU is loaded, and scored by the doctor, before it is moved there."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    student = Student(save(tmp_path), attn_implementation="flex_attention")
    batch = random_batch([9, 5])
    assert torch.equal(student.hidden(batch), hidden_at(build("llama"), batch))
    assert student.model.config._attn_implementation == "flex_attention"
