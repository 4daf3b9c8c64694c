"""LoRA adapters inside a model, merged for the engine; settings that cannot be merged are refused."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from opdlight.errors import ConfigError

KEY = "model.student.lora"
# What may be set: merged, each of them gives exactly the trained model under the base's names of weights.
SUPPORTED = {
    "r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern",
    "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out", "init_lora_weights",
}  # fmt: skip
CHOSEN_HERE = {"task_type", "peft_type", "peft_version"}
INITIAL = (True, "gaussian")  # adapters that start as the identity and leave the base as it is


def add_lora(model: Any, lora: Mapping[str, Any]) -> None:
    """Put LoRA layers into `model` in place and freeze everything else. Adapters are float32.

    Raises:
        ConfigError: naming the key, for what peft refuses and for what would make the engine's policy differ from the
            trainer's.
    """
    from peft import LoraConfig, inject_adapter_in_model  # slow to import, and only LoRA needs it

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    try:
        config, default = LoraConfig(**{"target_modules": "all-linear", **lora}, task_type="CAUSAL_LM"), LoraConfig()
    except (TypeError, ValueError) as error:
        raise _wrong(lora, error) from error
    _check(config, default)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Model (with|has) `tie_word_embeddings=True`")  # refused below
            inject_adapter_in_model(config, model)
    except (TypeError, ValueError) as error:
        raise _wrong(lora, error) from error
    adapted = lora_layers(model).values()
    wrong = ""
    if any(layer.get_base_layer() is head for layer in adapted):
        wrong = "no LM head: the losses multiply with its weight itself"
    elif tied and any(layer.get_base_layer() is embedding for layer in adapted):
        wrong = "no embedding that is tied to the LM head: merged for the engine, the adapter would change both"
    if wrong:
        raise ConfigError.wrong(f"{KEY}.target_modules", expected=wrong, got=lora.get("target_modules"))
    model.eval()  # peft's layers are created in training mode
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()  # small, and AdamW's steps would be lost in bfloat16


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """The layers with an adapter, by name."""
    if not any("lora_" in name for name, _ in model.named_parameters()):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@torch.no_grad()
def merged_weights(layer: Any) -> dict[str, Tensor]:
    """The weights of a layer with its adapter merged, by the base layer's names.

    In float32, whatever the base has: rounded to bfloat16 a small adapter would vanish. Those of a sharded layer stay
    sharded; all ranks must call this together.
    """
    # merging in place would change the trained weights; a copy of a sharded one has no storage that deepcopy could copy
    copies = {id(w): nn.Parameter(w.detach().to(torch.float32, copy=True), False) for w in layer.parameters()}
    merged = copy.deepcopy(layer, copies)
    merged.merge()
    found: dict[str, Tensor] = merged.get_base_layer().state_dict()
    return found


def _wrong(lora: Mapping[str, Any], error: Exception) -> ConfigError:
    return ConfigError.wrong(KEY, expected=f"arguments of peft.LoraConfig ({error})", got=dict(lora))


def _check(config: Any, default: Any) -> None:
    if config.lora_dropout:
        raise ConfigError.wrong(
            f"{KEY}.lora_dropout",
            expected="0 (the student that trains must be the policy that has rolled out, and that knows no dropout)",
            got=config.lora_dropout,
        )
    if config.init_lora_weights not in INITIAL:
        raise ConfigError.wrong(
            f"{KEY}.init_lora_weights",
            expected="true or gaussian (others change the base, so that the engine and a saved adapter have another)",
            got=config.init_lora_weights,
        )
    for name in sorted({field.name for field in fields(config)} - SUPPORTED - CHOSEN_HERE):
        if getattr(config, name) != getattr(default, name):
            raise ConfigError.wrong(
                f"{KEY}.{name}",
                expected="to be left out: opdlight merges adapters for its engine, and knows how for "
                + ", ".join(sorted(SUPPORTED)),
                got=getattr(config, name),
            )
