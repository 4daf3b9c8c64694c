"""Packing: the rows of a micro-batch run as one row without padding, in which each token attends to its own row only.

transformers does the masking. Position ids that start again at each row tell it where rows begin: it then makes a
block-diagonal mask (SDPA, eager), a block mask that skips what is masked (flex attention), or hands the ends of the
rows to kernels for rows of different lengths (flash attention).
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested

from opdlight.errors import ConfigError
from opdlight.models.attention import runnable
from opdlight.models.distinct_tokens import LAYERS, SDPA, TOLERANCE
from opdlight.types import TokenBatch

KEY = "packing"
SAMPLE_ROWS = (5, 9, 3)  # tokens


def packed_inputs(batch: TokenBatch) -> tuple[dict[str, Any], Tensor]:
    """What a decoder is called with so that it runs the B rows as one, and where the loss positions are in it [N]."""
    lengths = batch.attention_mask.sum(1)
    ends = lengths.cumsum(0)
    return _as_one(batch.input_ids[batch.attention_mask], lengths), (ends - lengths)[batch.row_index] + batch.col_index


def _as_one(tokens: Tensor, lengths: Tensor) -> dict[str, Any]:
    """The arguments for `tokens` [S] of rows of `lengths` [B].

    flash attention could find the ends of the rows in the position ids, but it would do so, and wait for the GPU, in
    every layer.
    """
    ends = lengths.cumsum(0)
    starts = (ends - lengths).repeat_interleave(lengths)  # [S]
    cumulative = torch.nn.functional.pad(ends, (1, 0)).to(torch.int32)
    longest = int(lengths.max())
    return {
        "input_ids": tokens[None],
        "position_ids": (torch.arange(len(tokens), device=tokens.device) - starts)[None],
        "cu_seq_lens_q": cumulative,
        "cu_seq_lens_k": cumulative,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def resolve_packing(packing: bool | Literal["auto"], models: Iterable[PreTrainedModel]) -> bool:
    """Whether the rows of micro-batches are packed.

    Args:
        packing: `auto` packs where the attention of all models skips what is masked and none of them forbids it.
        models: that run the micro-batches, as they were loaded.

    Raises:
        ConfigError: naming `packing`, if it is true and a model cannot.
    """
    for model in models if packing else ():
        if packing == "auto" and not skips_masked(model):
            return False
        problem = why_not(model)
        if problem is not None:
            if packing == "auto":
                return False
            raise ConfigError.wrong(KEY, expected=f"false for {type(model).__name__}, {problem}", got=packing)
    return bool(packing)


def skips_masked(model: PreTrainedModel) -> bool:
    """True if the model's attention costs nothing between tokens of different rows."""
    if model.config._attn_implementation == SDPA:
        return True
    return is_flash_attention_requested(model.config) or model.config._attn_implementation == "flex_attention"


@torch.no_grad()
def why_not(model: PreTrainedModel) -> str | None:
    """Why the rows of `model` must not be packed; None if they may. A few short rows are run packed and alone."""
    if model.config._attn_implementation == SDPA:
        return None  # it was tried when the model was loaded
    config = model.config.get_text_config()
    others = sorted(set(getattr(config, "layer_types", None) or ()) - LAYERS)
    if others:
        return f"whose layers ({', '.join(others)}) would see the rows before"
    device = next(model.parameters()).device
    lengths = torch.tensor(SAMPLE_ROWS, device=device)
    tokens = torch.arange(int(lengths.sum()), device=device) * 7 % config.vocab_size
    decoder = model.get_decoder()
    with runnable(model, device):
        try:
            packed = decoder(**_as_one(tokens, lengths), use_cache=False).last_hidden_state[0]
        except TypeError as error:
            return f"which does not take the ends of the rows ({error})"
        rows = tokens.split(SAMPLE_ROWS)
        alone = torch.cat([decoder(input_ids=r[None], use_cache=False).last_hidden_state[0] for r in rows])
    apart = float((packed - alone).abs().max() / alone.abs().max().clamp(min=1e-30))
    if apart < TOLERANCE[alone.dtype]:
        return None
    return f"whose hidden states in a packed row differ from those of the row alone (by {apart:.1e} of the largest)"
