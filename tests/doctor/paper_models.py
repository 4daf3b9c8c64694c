"""The shapes of the paper's models, from their public `config.json`, and what torch says of them on the meta device."""

import runpy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel, Qwen2ForCausalLM

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "preset_memory.py"))
SHAPES: dict[str, dict[str, Any]] = TOOL["SHAPES"]
config = TOOL["config"]  # name of a size → Qwen2Config


def on_meta(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model without its weights, in eval mode."""
    with torch.device("meta"):
        model: Any = Qwen2ForCausalLM(config(name))
    return model.to(dtype).eval()


def _flash(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **ignored: Any) -> tuple[Tensor, None]:
    """The operator that a GPU runs; on the meta device it has shapes only."""
    found = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True)
    return found[0].transpose(1, 2), None


def kept_bytes(model: PreTrainedModel, tokens: int) -> int:
    """The bytes that autograd keeps of a forward pass of `tokens` tokens with flash attention, without the weights."""
    AttentionInterface.register("flash_on_meta", _flash)
    model.config._attn_implementation = "flash_on_meta"
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model.get_decoder()(input_ids=ids, attention_mask={"full_attention": None}, use_cache=False)
    assert out.last_hidden_state.requires_grad
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in own)
