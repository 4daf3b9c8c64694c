"""The LM head: the one file that touches anything of width V.

Letters: N positions, d hidden size, V rows of the head (padding included), K support size, U distinct ids of a batch.
Precision: products are taken in the dtype of the hidden states, as the model itself does; everything after the product
(scale, soft-cap, temperature, log-sum-exp) and every sum of gradients over positions is in float32 or wider.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from opdlight.errors import ConfigError
from opdlight.types import SharedVocabulary, View

# Above this many distinct ids per support entry (U > GATHER_RATIO · K) fetching K rows a position is cheaper than one
# product with the union of all rows: the union costs 2NUd operations at the speed of a matrix product, the gather moves
# NKd numbers at the speed of memory. Measured with tools/bench_lm_head.py on one x86 thread in float32 (K = 32, d = 128
# to 576): the union takes 0.8 of the gather's time at U/K = 62, 0.96 at 140, and 1.7 to 2.3 times as long at 190.
GATHER_RATIO = 140
PART_ELEMENTS = 2**23  # numbers in the largest intermediate of `support_logits` (32 MB in float32)
CHUNK = 256  # positions whose V logits exist at the same time in the full-width functions


@dataclass(frozen=True, slots=True, kw_only=True)
class LMHead:
    """logits = softcap · tanh(scale · (hidden @ weightᵀ + bias) / softcap); without a soft-cap just scale · (…)."""

    weight: Tensor  # [V, d]
    bias: Tensor | None = None  # [V]
    scale: float = 1.0
    softcap: float | None = None

    @property
    def width(self) -> int:
        """V, the number of logits; may exceed what the tokenizer knows."""
        return self.weight.shape[0]

    def activate(self, product: Tensor) -> Tensor:
        """Raw products (of any shape) → logits."""
        logits = product if self.scale == 1.0 else product * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def logits(self, hidden: Tensor) -> Tensor:
        """All logits [n, V] of a few positions [n, d], float32 or wider."""
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        return self.activate(_wide(linear(hidden, self.weight.to(hidden.dtype), bias)))


def support_logits(hidden: Tensor, head: LMHead, token_ids: Tensor) -> Tensor:
    """The logits of K chosen ids a position; equal to `head.logits(hidden).gather(-1, token_ids)`, gradients included.

    Peak memory and time do not depend on V, but for the gradient of the head's weight, which is dense [V, d] as the
    parameter is (none is made where the head is frozen, as under LoRA).

    Args:
        hidden: [N, d].
        head: of V rows.
        token_ids: [N, K], below V; an id may occur twice in a row.

    Returns:
        [N, K], float32 or wider, not divided by the temperature; gradients reach hidden, weight and bias.
    """
    product: Tensor = _SupportProduct.apply(hidden, head.weight, token_ids)
    return head.activate(product if head.bias is None else product + _wide(head.bias)[token_ids])


def support_values(hidden: Tensor, head: LMHead, support_ids: Tensor, temperature: float, *, whole: bool) -> Tensor:
    """What a model says on a support: logits / temperature [N, K], for student and teacher alike.

    Both must come from this one function on rows of one layout: then equal models give equal bits, and a loss between
    them a gradient of exactly 0. `whole`: the support is the first K ids of the vocabulary at each position, so [N, V]
    numbers exist, with gradient if `hidden` has one.
    """
    if whole:
        return head.logits(hidden)[:, : support_ids.shape[1]] / temperature
    return support_logits(hidden, head, support_ids) / temperature


def log_normaliser(hidden: Tensor, head: LMHead, temperature: float = 1.0, chunk: int = CHUNK) -> Tensor:
    """The log-normaliser log Σ_v exp(z_v / temperature) at each position [N], with gradients.

    Chunks of `chunk` positions are recomputed in the backward pass, so that only [chunk, V] logits exist at a time.
    """
    parts = [_again(_log_normaliser, h, head, temperature) for h in hidden.split(chunk)]
    return torch.cat(parts)


def token_logprobs(
    hidden: Tensor, head: LMHead, token_ids: Tensor, temperature: float = 1.0, chunk: int = CHUNK, top_p: float = 1.0
) -> Tensor:
    """Log-probs of one token a position [N], with gradients: z_token / temperature − log Σ_v exp(z_v / temperature).

    Both terms come from the same product, so a log-prob never exceeds 0 by a rounding of bfloat16. Memory as in
    `log_normaliser`. With `top_p` < 1 the sum is over the nucleus (the most probable tokens up to that mass) and the
    token itself: the distribution that such sampling draws from.
    """
    pairs = zip(hidden.split(chunk), token_ids.split(chunk), strict=True)
    return torch.cat([_again(_token_logprobs, h, head, temperature, ids, top_p) for h, ids in pairs])


@torch.no_grad()
def top_k(hidden: Tensor, head: LMHead, k: int, *, shared: SharedVocabulary, chunk: int = CHUNK) -> Tensor:
    """The `k` most probable ids of a vocabulary [N, K], best first.

    Raises:
        ConfigError: naming `loss.k`, if the vocabulary holds fewer than `k` ids.
    """
    _check_k(k, shared)
    return torch.cat([_top_k(head.logits(h), k, shared) for h in hidden.split(chunk)])


@torch.no_grad()
def top_k_and_token(
    hidden: Tensor,
    head: LMHead,
    k: int,
    token_ids: Tensor,
    *,
    temperature: float,
    shared: SharedVocabulary,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids of `top_k` [N, K], `log_normaliser` [N] and `token_logprobs` [N] from one pass over the vocabulary."""
    _check_k(k, shared)
    parts = []
    for h, ids in zip(hidden.split(chunk), token_ids.split(chunk), strict=True):
        logits = head.logits(h) / temperature
        normaliser = logits.logsumexp(-1)
        parts.append(
            (_top_k(logits, k, shared), normaliser, logits.gather(1, ids.unsqueeze(1)).squeeze(1) - normaliser)
        )
    ids_parts, normaliser_parts, token_parts = zip(*parts, strict=True)
    return torch.cat(ids_parts), torch.cat(normaliser_parts), torch.cat(token_parts)


@torch.no_grad()
def entropy(hidden: Tensor, head: LMHead, *, temperature: float, chunk: int = CHUNK) -> Tensor:
    """−Σ_v p log p over the full width V, in nats [N]; no gradient."""
    parts = []
    for h in hidden.split(chunk):
        logprobs = (head.logits(h) / temperature).log_softmax(-1)
        parts.append(-(logprobs.exp() * logprobs).sum(-1))
    return torch.cat(parts)


@torch.no_grad()
def view(
    hidden: Tensor,
    head: LMHead,
    k: int,
    *,
    token_ids: Tensor,
    other_ids: Tensor,
    temperature: float,
    shared: SharedVocabulary,
    chunk: int = CHUNK,
) -> View:
    """All of `View` from one pass over the vocabulary: hidden [n, d], token ids [n], the other model's ids [n, K]."""
    _check_k(k, shared)
    columns: list[list[Tensor]] = []
    for h, ids, others in zip(hidden.split(chunk), token_ids.split(chunk), other_ids.split(chunk), strict=True):
        logprobs = (head.logits(h) / temperature).log_softmax(-1)
        best, best_ids = shared.only(logprobs).topk(k, dim=-1)
        token = logprobs.gather(1, ids.unsqueeze(1)).squeeze(1)
        columns.append([best_ids, best, token, -(logprobs.exp() * logprobs).sum(-1), logprobs.gather(1, others)])
    top_ids, top_logprobs, sampled, spread, at_other = (torch.cat(parts) for parts in zip(*columns, strict=True))
    return View(top_ids=top_ids, top_logprobs=top_logprobs, sampled=sampled, entropy=spread, at_other=at_other)


class _SupportProduct(torch.autograd.Function):
    """hidden [N, d], weight [V, d], ids [N, K] → products [N, K], by the union of the ids or by a gather of rows.

    Written by hand because autograd would keep every gathered row, or make a dense [V, d] gradient for each part.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, token_ids: Tensor) -> Tensor:
        union, slot = torch.unique(token_ids, return_inverse=True)  # [U], [N, K] places in the union
        ctx.save_for_backward(hidden, weight, union, slot)
        rows = weight.index_select(0, union).to(hidden.dtype)  # [U, d]
        products = torch.empty(slot.shape, dtype=_wide_dtype(hidden.dtype), device=hidden.device)
        gather = _gathers(slot, union)
        for part in _parts(slot, rows, gather):
            if gather:
                products[part] = torch.bmm(rows[slot[part]], hidden[part].unsqueeze(2)).squeeze(2)
            else:
                products[part] = (hidden[part] @ rows.T).gather(1, slot[part])
        return products

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, weight, union, slot = ctx.saved_tensors
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        rows = weight.index_select(0, union).to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        grad_rows = torch.zeros(rows.shape, dtype=grad.dtype, device=rows.device) if for_weight else None
        gather = _gathers(slot, union)
        for part in _parts(slot, rows, gather):
            if gather:
                if grad_hidden is not None:
                    share = grad[part].to(hidden.dtype).unsqueeze(1)
                    grad_hidden[part] = torch.bmm(share, rows[slot[part]]).squeeze(1)
                if grad_rows is not None:
                    outer = grad[part].unsqueeze(2) * hidden[part].unsqueeze(1)  # [n, K, d]
                    grad_rows.index_add_(0, slot[part].flatten(), outer.flatten(0, 1))
            else:
                spread = grad.new_zeros(len(slot[part]), len(union)).scatter_add_(1, slot[part], grad[part])
                spread = spread.to(hidden.dtype)  # [n, U]
                if grad_hidden is not None:
                    grad_hidden[part] = spread @ rows
                if grad_rows is not None:
                    grad_rows += spread.T @ hidden[part]
        if grad_rows is None:
            return grad_hidden, None, None
        return grad_hidden, torch.zeros_like(weight).index_copy_(0, union, grad_rows.to(weight.dtype)), None


def _gathers(slot: Tensor, union: Tensor) -> bool:
    return len(union) > GATHER_RATIO * slot.shape[1]


def _parts(slot: Tensor, rows: Tensor, gather: bool) -> Iterator[slice]:
    """Slices of positions whose intermediate stays below PART_ELEMENTS numbers."""
    per_position = slot.shape[1] * rows.shape[1] if gather else len(rows)
    size = max(1, PART_ELEMENTS // max(per_position, 1))
    return (slice(start, start + size) for start in range(0, len(slot), size))


def _again(function: Any, hidden: Tensor, head: LMHead, *rest: Any) -> Tensor:
    """Call `function` and forget its intermediates: they are computed again in the backward pass."""
    result: Tensor = checkpoint(function, hidden, head, *rest, use_reentrant=False, preserve_rng_state=False)
    return result


def _log_normaliser(hidden: Tensor, head: LMHead, temperature: float) -> Tensor:
    return (head.logits(hidden) / temperature).logsumexp(-1)


def _token_logprobs(hidden: Tensor, head: LMHead, temperature: float, token_ids: Tensor, top_p: float) -> Tensor:
    logits = head.logits(hidden) / temperature
    if top_p < 1.0:
        logits = logits.masked_fill(_outside_nucleus(logits.detach(), token_ids, top_p), -torch.inf)
    return _pick(logits, token_ids)


def _outside_nucleus(logits: Tensor, token_ids: Tensor, top_p: float) -> Tensor:
    probabilities, order = logits.softmax(-1).sort(-1, descending=True)
    before = probabilities.cumsum(-1) - probabilities
    outside = torch.empty_like(before, dtype=torch.bool).scatter_(1, order, before >= top_p)
    return outside.scatter_(1, token_ids.unsqueeze(1), False)


def _pick(logits: Tensor, token_ids: Tensor) -> Tensor:
    return logits.gather(1, token_ids.unsqueeze(1)).squeeze(1) - logits.logsumexp(-1)


def _top_k(logits: Tensor, k: int, shared: SharedVocabulary) -> Tensor:
    return shared.only(logits).topk(k, dim=-1).indices


def _check_k(k: int, shared: SharedVocabulary) -> None:
    if not 1 <= k <= len(shared):
        raise ConfigError.wrong("loss.k", expected=f"from 1 to the {len(shared)} ids both models share", got=k)


def _wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(_wide_dtype(tensor.dtype))
