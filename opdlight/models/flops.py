"""Floating-point operations of a transformer's layers, by the usual formula (PaLM, arXiv 2204.02311, appendix B)."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from transformers import PreTrainedModel

# bfloat16 (tensor cores, without sparsity) and float32, by NVIDIA's data sheets, of cards that Lightning 2.6 does not
# know by the name they give themselves, or knows with sparsity
PEAKS = {"h200 nvl": (8.35e14, 6.0e13), "h200": (9.89e14, 6.7e13), "h100 nvl": (8.35e14, 6.0e13)}
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFlops:
    """What the layers of a model cost; embeddings, LM head, norms and the softmax of attention are left out."""

    per_token: float  # of a token: its products with the weights
    per_square: float  # of a row of T tokens, times T²: attention's two products, not halved for causal attention

    def of(self, lengths: Iterable[int]) -> float:
        """Of rows with so many tokens each."""
        return sum(self.per_token * n + self.per_square * n * n for n in lengths)


def forward_flops(model: PreTrainedModel) -> LayerFlops | None:
    """One forward pass: 2 a weight and token, and 4 · layers · heads · width of a head a pair of tokens.

    Layers of another kind than full attention (a window, a recurrence) count their weights only. None for a mixture of
    experts, of which a token uses a few.
    """
    config = model.config.get_text_config()
    if any(getattr(config, name, None) for name in EXPERTS):
        return None
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_attention_heads * head
    return LayerFlops(
        per_token=2.0 * _weights(model, trained=False), per_square=4.0 * kinds.count("full_attention") * width
    )


def training_flops(model: PreTrainedModel) -> LayerFlops | None:
    """Forward and backward pass: the gradient of the activations costs another forward pass, and so does that of the
    trained weights. What gradient checkpointing computes again is not counted.
    """  # noqa: D205
    forward = forward_flops(model)
    if forward is None:
        return None
    return LayerFlops(
        per_token=2 * forward.per_token + 2.0 * _weights(model, trained=True), per_square=3 * forward.per_square
    )


def peak_flops(device: torch.device, dtype: torch.dtype) -> int | None:
    """FLOP/s of a GPU in products of this dtype, for MFU; None, with a warning of Lightning's, if that is not known."""
    name = torch.cuda.get_device_name(device).lower()
    for card, (bfloat16, float32) in PEAKS.items():
        if card in name:
            return int(bfloat16 if dtype is torch.bfloat16 else float32)
    return get_available_flops(device, dtype)


def _weights(model: PreTrainedModel, *, trained: bool) -> int:
    """The number of weights in the layers; of the trained ones if `trained`, else of all."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    outside = {id(p) for end in ends if end is not None for p in end.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in outside and (p.requires_grad or not trained))
