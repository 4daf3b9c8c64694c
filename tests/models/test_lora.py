"""What may be set of LoRA: merged under the base's own names it is the model that was trained; the rest is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from opdlight.errors import ConfigError
from opdlight.models import Student
from opdlight.models.loading import load_model
from tests.models.architectures import full_logits, random_batch, save

LORA = {"r": 4, "lora_alpha": 8}
RIGHT: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("llama", {}),
    "linear-tied": ("llama-tied", {}),
    "conv1d": ("gpt2", {"fan_in_fan_out": True}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "pattern": ("qwen2", {"target_modules": r".*\.(q_proj|down_proj)"}),
    "excluded": ("llama", {"exclude_modules": ["q_proj"]}),
    "dora": ("llama", {"use_dora": True}),
    "dora-tied": ("llama-tied", {"use_dora": True}),
    "rslora": ("llama-tied", {"use_rslora": True}),
    "one-layer": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}),
    "ranks": ("qwen2", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 16, "up_proj": 1}}),
    "gaussian": ("llama", {"init_lora_weights": "gaussian"}),
}


def adapted(folder: str, lora: dict[str, Any], dtype: str = "float32", size: float = 0.2) -> Student:
    """A student whose adapters do something."""
    student = Student(folder, dtype=dtype, lora=LORA | lora)
    torch.manual_seed(3)
    for weight in student.trainable_parameters():
        weight.data += size * torch.randn_like(weight)
    return student


@pytest.mark.parametrize("case", list(RIGHT))
def test_merged_weights_are_the_trained_model_in_the_engine_and_on_disk(case: str, tmp_path: Path) -> None:
    architecture, lora = RIGHT[case]
    folder, batch = save(tmp_path / "base", architecture), random_batch([10, 6])
    base = AutoModelForCausalLM.from_pretrained(folder).eval()
    start = Student(folder, lora=LORA | lora)
    torch.testing.assert_close(start.head().logits(start.hidden(batch)), full_logits(base, batch), atol=1e-4, rtol=1e-4)
    student = adapted(folder, lora)
    expected = student.head().logits(student.hidden(batch))
    assert (expected - full_logits(base, batch)).abs().max() > 0.01
    missing, unexpected = base.load_state_dict(dict(student.named_weights()), strict=False)
    base.tie_weights()
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    student.save(tmp_path / "merged")
    student.save_adapter(tmp_path / "adapter")
    for model in (base, load_model(tmp_path / "merged", "float32"), load_model(tmp_path / "adapter", "float32")):
        torch.testing.assert_close(full_logits(model, batch), expected, atol=1e-4, rtol=1e-4)


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "tied": ("llama-tied", {"target_modules": ["embed_tokens", "q_proj"]}, "target_modules"),
    "tied-pattern": ("qwen2", {"target_modules": ".*embed_tokens"}, "target_modules"),
    "tied-gpt2": ("gpt2", {"target_modules": ["wte"]}, "target_modules"),
    "tied-head": ("llama-tied", {"target_modules": ["lm_head"]}, "target_modules"),
    "tied-both": ("llama-tied", {"target_modules": ["lm_head", "embed_tokens"]}, "target_modules"),
    "kept-tied": ("llama-tied", {"target_modules": ["lm_head"], "ensure_weight_tying": True}, "ensure_weight_tying"),
    "head": ("llama", {"target_modules": ["lm_head", "q_proj"]}, "target_modules"),
    "saved": ("llama", {"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
    "tokens": ("llama-tied", {"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    "bias": ("qwen2", {"bias": "lora_only"}, "bias"),
    "lora-bias": ("llama", {"lora_bias": True}, "lora_bias"),
    "pissa": ("llama", {"init_lora_weights": "pissa"}, "init_lora_weights"),
    "random": ("llama", {"init_lora_weights": False}, "init_lora_weights"),
    "replicated": ("llama", {"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    "parameters": ("llama", {"target_parameters": ["q_proj.weight"]}, "target_parameters"),
    "activated": ("llama", {"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(WRONG))
def test_what_engine_and_trainer_would_not_share_is_one_error_with_the_key(case: str, tmp_path: Path) -> None:
    architecture, lora, key = WRONG[case]
    with pytest.raises(ConfigError, match=rf"^Expected `model\.student\.lora\.{key}` to be "):
        Student(save(tmp_path, architecture), lora=LORA | lora)


def test_what_is_left_at_its_default_may_be_written(tmp_path: Path) -> None:
    neutral = {"bias": "none", "modules_to_save": None, "lora_dropout": 0.0, "layer_replication": None}
    assert Student(save(tmp_path), lora=LORA | neutral).has_adapter
