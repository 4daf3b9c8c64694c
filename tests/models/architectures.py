"""Random models of several architectures, built from their configs, and batches of random tokens."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from opdlight.types import TokenBatch
from tests.tiny_models import tiny_tokenizer

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 64,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    },  # 0.1 by default
    "gemma2": {"model_type": "gemma2", "head_dim": 8, "final_logit_softcapping": 3.0},
    "granite": {"model_type": "granite", "logits_scaling": 4.0},
    "cohere": {"model_type": "cohere", "logit_scale": 0.25},
}
OTHERS: dict[str, dict[str, Any]] = {  # not every test is for them
    "gemma3": {"model_type": "gemma3_text", "head_dim": 8},
    **{name: {"model_type": name} for name in ("bloom", "lfm2", "mamba2", "mistral", "qwen2_moe")},
}


def build(architecture: str, seed: int = 0, width: int = 330, **changes: Any) -> PreTrainedModel:
    """A random float32 model in eval mode; the tokenizer knows fewer tokens than its `width`."""
    torch.manual_seed(seed)
    settings = {**(ARCHITECTURES | OTHERS)[architecture], **changes}
    kind = settings.pop("model_type")
    config = AutoConfig.for_model(kind, vocab_size=width, **{**SMALL, **settings})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def save(folder: Path, architecture: str = "llama", seed: int = 0, width: int = 330, **changes: Any) -> str:
    """Write a random model and the tiny tokenizer; returns the folder as text."""
    build(architecture, seed, width, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def random_batch(lengths: list[int], tasks: tuple[str, ...] = ("a",), seed: int = 0, ids: int = 300) -> TokenBatch:
    """Right-padded rows of random tokens; every second token carries loss; row b belongs to task b modulo tasks."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    input_ids = torch.randint(0, ids, (len(lengths), width), generator=generator)
    attention_mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    at = [(b, t) for b, length in enumerate(lengths) for t in range(1, length - 1, 2)]
    row, col = torch.tensor(at, dtype=torch.long).reshape(-1, 2).unbind(1)
    return TokenBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=torch.arange(width).expand(len(lengths), -1) * attention_mask,
        row_index=row,
        col_index=col,
        target_ids=input_ids[row, col + 1],
        sampled_logprobs=torch.zeros(len(at)),
        turn_index=torch.zeros_like(row),
        token_position=col,
        trajectory_index=row,
        task_index=row % len(tasks),
        group_advantage=torch.zeros(len(at)),
        tasks=tasks,
        global_tokens=len(at),
    )


def full_logits(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """The model's own logits [N, V] at the loss positions, one unpadded row at a time: the slow reference."""
    parts = []
    for b in range(len(batch.input_ids)):
        length = int(batch.attention_mask[b].sum())
        parts.append(model(input_ids=batch.input_ids[b : b + 1, :length], use_cache=False).logits[0])
    return torch.stack([parts[b][t] for b, t in zip(batch.row_index.tolist(), batch.col_index.tolist(), strict=True)])
