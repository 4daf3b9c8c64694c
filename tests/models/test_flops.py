"""The formula for what layers cost, beside PyTorch's own count."""

import pytest
import torch
from lightning.fabric.utilities.throughput import measure_flops
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PreTrainedModel, Qwen2Config

from opdlight.models.flops import forward_flops, peak_flops, training_flops

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 50}  # fmt: skip


def on_meta(config: Qwen2Config | LlamaConfig) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return model


@pytest.mark.parametrize("config", [Qwen2Config(**SIZES), LlamaConfig(**SIZES, head_dim=32)])
@pytest.mark.parametrize("tokens", [8, 64])
def test_forward_and_backward_cost_what_pytorch_counts(config: Qwen2Config | LlamaConfig, tokens: int) -> None:
    model = on_meta(config)
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    head = 2 * tokens * config.vocab_size * config.hidden_size
    run = lambda: model(ids).logits.sum()  # noqa: E731
    forward, training = forward_flops(model), training_flops(model)
    assert forward is not None and training is not None
    assert forward.of([tokens]) == pytest.approx(measure_flops(model, run) - head, rel=0.02)
    assert training.of([tokens]) == pytest.approx(measure_flops(model, run, lambda x: x) - 3 * head, rel=0.02)
    assert training.of([tokens, tokens]) == 2 * training.of([tokens])


def test_frozen_weights_need_no_gradient_of_their_own() -> None:
    model = on_meta(Qwen2Config(**SIZES)).requires_grad_(False)
    forward, training = forward_flops(model), training_flops(model)
    assert forward is not None and training is not None
    assert training.per_token == 2 * forward.per_token


def test_windows_count_as_weights_and_experts_are_not_counted() -> None:
    config = Qwen2Config(**SIZES, layer_types=["full_attention", "sliding_attention", "sliding_attention"])
    windows, full = forward_flops(on_meta(config)), forward_flops(on_meta(Qwen2Config(**SIZES)))
    assert windows is not None and full is not None
    assert windows.per_square == full.per_square / 3
    assert forward_flops(on_meta(MixtralConfig(**SIZES, num_local_experts=2))) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "bfloat16", "float32"),
    [
        ("NVIDIA H200", 9.89e14, 6.7e13),
        ("NVIDIA H200 NVL", 8.35e14, 6.0e13),
        ("NVIDIA H100 NVL", 8.35e14, 6.0e13),
        ("NVIDIA H100 80GB HBM3", 9.894e14, 6.69e13),  # by Lightning
        ("NVIDIA A100-SXM4-80GB", 3.12e14, 1.95e13),
    ],
)
def test_the_peak_of_a_card_is_without_sparsity(
    name: str, bfloat16: float, float32: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr("lightning.fabric.accelerators.cuda._is_ampere_or_later", lambda: True)
    device = torch.device("cuda")
    assert (peak_flops(device, torch.bfloat16), peak_flops(device, torch.float32)) == (bfloat16, float32)
