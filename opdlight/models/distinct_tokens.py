"""The rows of a micro-batch run as one row of distinct tokens: what several rows begin with is computed once.

What a causal model computes at a token depends on it and on the tokens before it. Where rows begin alike (a prompt that
a group shares, a system prompt that all have, a history that was rewritten late) they are the same up to there, so
these tokens run once, and padding does not run at all. Only attention knows rows: it copies queries, keys and values to
the rows that they are in, runs these causally, without a mask, and takes each token's result from the first of its
rows. In the backward pass the gradients of the copies add up.

transformers calls attention by a name that its config has, so the models that may do this have the name `SDPA` here,
which is transformers' own SDPA except for calls with distinct tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from opdlight.types import TokenBatch

SDPA = "sdpa_of_distinct_tokens"
LEAST_SAVED = 0.1  # of all tokens, padding included; what attention copies costs less than that
LAYERS = {"full_attention", "sliding_attention"}  # others carry a state, or count positions from the start of the row
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of the largest hidden state
SAMPLE_ROWS = ([1, 2, 3, 4, 5], [1, 2, 3, 6, 7, 8, 9, 3, 1], [4, 1, 2])


@dataclass(frozen=True, slots=True, kw_only=True)
class DistinctTokens:
    """S distinct tokens of B rows of up to T tokens, and their places in attention's blocks of rows.

    A block has rows of similar lengths, padded at the end; its places are numbered row by row, block after block.
    """

    ids: Tensor  # [1, S]
    position_ids: Tensor  # [1, S] within their rows
    number: Tensor  # [B, T] which of the S a row's token is; on padding any
    shapes: tuple[tuple[int, int], ...]  # of each block: rows, columns
    token_at: Tensor  # [places] which of the S is there; on padding any
    copies: tuple[Tensor, ...]  # [S], [S₂] … the place of each token in its first row, in the second of those in two …

    def inputs(self) -> dict[str, Any]:
        """What a decoder is called with."""
        # without a mask transformers would look for the ends of rows in the position ids
        ones = torch.ones_like(self.ids)
        return {"input_ids": self.ids, "attention_mask": ones, "position_ids": self.position_ids, "distinct": self}

    def to_rows(self, states: Tensor) -> tuple[Tensor, ...]:
        """[1, heads, S, width] → for each block [rows, heads, columns, width]."""
        tokens = states[0].transpose(0, 1)
        placed = _ToPlaces.apply(tokens, self)
        blocks = placed.split([rows * columns for rows, columns in self.shapes])
        return tuple(b.unflatten(0, shape).transpose(1, 2) for b, shape in zip(blocks, self.shapes, strict=True))

    def from_rows(self, blocks: list[Tensor]) -> Tensor:
        """[rows, columns, heads, width] of each block → [1, S, heads, width], from the first row of each token."""
        placed = torch.cat([block.flatten(0, 1) for block in blocks]) if len(blocks) > 1 else blocks[0].flatten(0, 1)
        found: Tensor = _ToTokens.apply(placed, self)
        return found[None]


def distinct_tokens(input_ids: Tensor, attention_mask: Tensor) -> DistinctTokens:
    """Find what rows [B, T], padded at their ends, have in common at their beginning. It depends on nothing else."""
    ids, mask = input_ids.cpu(), attention_mask.cpu()
    rows, lengths = len(ids), mask.sum(1)
    # sorted, each row comes right after one with which it has most in common
    order = torch.tensor(sorted(range(rows), key=lambda b: ids[b, : lengths[b]].tolist()))
    sorted_ids, sorted_mask = ids[order], mask[order]
    shared = torch.zeros_like(sorted_mask)  # with the row before
    shared[1:] = ((sorted_ids[1:] == sorted_ids[:-1]) & sorted_mask[1:] & sorted_mask[:-1]).cumprod(1).bool()
    new = sorted_mask & ~shared
    number = torch.zeros_like(sorted_ids)
    number[new] = torch.arange(int(new.sum()))
    owner = torch.where(new, torch.arange(rows)[:, None], 0).cummax(0).values  # the row whose token it is
    number = torch.empty_like(number).index_copy_(0, order, number.gather(0, owner))

    # those in most rows come first, so that the tokens in at least r rows are the first S_r
    times = number[mask].bincount()
    most_first = times.argsort(descending=True, stable=True)
    number, times = most_first.argsort()[number], times[most_first]
    blocks = _blocks(lengths)
    token_at = torch.cat([number[block, :columns].flatten() for block, columns in blocks])
    places = torch.cat([mask[block, :columns].flatten() for block, columns in blocks]).nonzero().squeeze(1)
    by_token = places[token_at[places].argsort(stable=True)]
    first = times.cumsum(0) - times
    copies = [by_token[first[: int((times > r).sum())] + r] for r in range(int(times.max()))]

    device, columns_of = input_ids.device, torch.arange(ids.shape[1]).expand_as(ids)
    return DistinctTokens(
        ids=_once(ids, number, mask).to(device),
        position_ids=_once(columns_of, number, mask).to(device),
        number=number.to(device),
        shapes=tuple((len(block), columns) for block, columns in blocks),
        token_at=token_at.to(device),
        copies=torch.cat(copies).to(device).split([len(c) for c in copies]),
    )


def _once(values: Tensor, number: Tensor, mask: Tensor) -> Tensor:
    """[B, T] → [1, S]; the rows of a token have the same value."""
    found = values.new_empty(1, int(number.max()) + 1)
    found[0, number[mask]] = values[mask]
    return found


def _blocks(lengths: Tensor) -> list[tuple[Tensor, int]]:
    """Rows, longest first, and how long they are at most: none is shorter than half of that."""
    by_length = lengths.argsort(descending=True, stable=True)
    blocks = []
    while len(by_length):
        longest = int(lengths[by_length[0]])
        many = int((2 * lengths[by_length] >= longest).sum())
        blocks.append((by_length[:many], longest))
        by_length = by_length[many:]
    return blocks


class _ToPlaces(torch.autograd.Function):
    """[S, …] → [places, …]; backward adds up the copies of a token, always in the same order."""

    @staticmethod
    def forward(ctx: FunctionCtx, tokens: Tensor, distinct: DistinctTokens) -> Tensor:
        ctx.distinct = distinct  # type: ignore[attr-defined]
        return tokens.index_select(0, distinct.token_at)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        first, *more = ctx.distinct.copies  # type: ignore[attr-defined]
        total = gradient.index_select(0, first)
        for places in more:
            total[: len(places)] += gradient.index_select(0, places)
        return total, None


class _ToTokens(torch.autograd.Function):
    """[places, …] → [S, …], each token from its first row, whose place gets all of the gradient."""

    @staticmethod
    def forward(ctx: FunctionCtx, placed: Tensor, distinct: DistinctTokens) -> Tensor:
        ctx.distinct = distinct  # type: ignore[attr-defined]
        return placed.index_select(0, distinct.copies[0])

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        distinct: DistinctTokens = ctx.distinct  # type: ignore[attr-defined]
        placed = gradient.new_zeros(len(distinct.token_at), *gradient.shape[1:])
        return placed.index_copy_(0, distinct.copies[0], gradient), None


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    distinct: DistinctTokens | None = None,
    **told: Any,
) -> tuple[Tensor, None]:
    """SDPA of transformers, or with `distinct` that of its rows; the arguments are those of an `AttentionInterface`."""
    if distinct is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **told)
    if told.get("position_bias") is not None:
        raise TypeError("a position bias is one of whole rows")
    if told.get("sliding_window") is None and _has_window(module):
        raise TypeError("the window is known to the mask of whole rows only")
    told["is_causal"] = True
    found = []
    for q, k, v in zip(*(distinct.to_rows(states) for states in (query, key, value)), strict=True):
        mask = _window(q.shape[2], told.get("sliding_window"), q.device)
        found.append(sdpa_attention_forward(module, q, k, v, mask, **told)[0])
    return distinct.from_rows(found), None


def _has_window(module: torch.nn.Module) -> bool:
    """True if by its config an attention sees the last tokens only; on the short rows of the trial it sees them all."""
    config, layer = getattr(module, "config", None), getattr(module, "layer_idx", None)
    kinds = getattr(config, "layer_types", None)
    if kinds and layer is not None:
        return bool(kinds[layer] == "sliding_attention")
    return bool(getattr(config, "sliding_window", None))


def _window(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """What a row of `length` tokens may see [1, 1, length, length]; None: all before."""
    if window is None or length <= window:
        return None
    back = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return ((back >= 0) & (back < window))[None, None]


AttentionInterface.register(SDPA, _attention)
AttentionMaskInterface.register(SDPA, sdpa_mask)


def last_hidden(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """The decoder's last hidden states at the loss positions [N, d] of a model whose attention is `SDPA`.

    Where that saves little, rows run as they are, but without a mask: padding is at their ends, and nothing sees it.
    """
    decoder, ids = model.get_decoder(), batch.input_ids
    distinct = distinct_tokens(ids, batch.attention_mask)
    if distinct.ids.numel() > (1 - LEAST_SAVED) * ids.numel():
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": batch.position_ids}
        plain: Tensor = decoder(**inputs, use_cache=False).last_hidden_state
        return plain[batch.row_index, batch.col_index]
    hidden: Tensor = decoder(**distinct.inputs(), use_cache=False).last_hidden_state
    return hidden[0, distinct.number[batch.row_index, batch.col_index]]


@torch.no_grad()
def use_distinct_tokens(model: PreTrainedModel) -> None:
    """Let a model with SDPA run rows as distinct tokens, if a few short rows are then what they are with padding."""
    config = model.config.get_text_config()
    if model.config._attn_implementation != "sdpa" or not set(getattr(config, "layer_types", None) or ()) <= LAYERS:
        return
    model.config._attn_implementation = SDPA
    if not _same(model, config.vocab_size):
        model.config._attn_implementation = "sdpa"


def _same(model: PreTrainedModel, width: int) -> bool:
    decoder, device = model.get_decoder(), next(model.parameters()).device
    rows = [torch.tensor(row, device=device) % width for row in SAMPLE_ROWS]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(ids.shape[1], device=device) < torch.tensor([[len(row)] for row in rows], device=device)
    distinct = distinct_tokens(ids, mask)
    padded = decoder(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state[mask]
    try:
        found = decoder(**distinct.inputs(), use_cache=False).last_hidden_state[0, distinct.number[mask]]
    except (TypeError, ValueError, RuntimeError):  # it does not hand on to its attention what that has to know
        return False
    apart = float((found - padded).abs().max() / padded.abs().max().clamp(min=1e-30))
    return apart < TOLERANCE[padded.dtype]
