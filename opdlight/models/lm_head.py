"""The LM head: with `one_pass.py`, where no gradient is wanted, the only file that makes tensors of width V.

Letters: N positions, d hidden size, V rows of the head (padding included), K support size, U distinct ids of a batch.
Precision: hidden states and weight are multiplied in the dtype of the hidden states, as the model itself does. The sums
of these products, everything after them (scale, soft-cap, temperature, log-sum-exp) and every sum of gradients over
positions, chunks and functions is in float32 or wider.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from opdlight.models.support_product import SupportProduct
from opdlight.models.wide_product import HeadProduct, SummedInFloat32, wide, wide_dtype

CHUNK = 256  # positions whose V logits exist at the same time in the full-width functions


@dataclass(frozen=True, slots=True, kw_only=True)
class LMHead:
    """logits = softcap · tanh(scale · (hidden @ weightᵀ + bias) / softcap); without a soft-cap just scale · (…)."""

    weight: Tensor  # [V, d]
    bias: Tensor | None = None  # [V]
    scale: float = 1.0
    softcap: float | None = None
    # [V, d], float32 or wider: where gradients of bfloat16 products go. Left out it is the weight, or `SummedInFloat32`
    gradient_to: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.gradient_to is None:
            trained = self.weight.requires_grad and torch.is_grad_enabled()
            sums = trained and self.weight.dtype is not wide_dtype(self.weight.dtype)
            object.__setattr__(self, "gradient_to", SummedInFloat32.apply(self.weight) if sums else self.weight)

    @property
    def width(self) -> int:
        """V, the number of logits; may exceed what the tokenizer knows."""
        return self.weight.shape[0]

    def copy(self) -> "LMHead":
        """The same head in memory of its own; without gradient."""
        bias = None if self.bias is None else self.bias.detach().clone()
        return LMHead(weight=self.weight.detach().clone(), bias=bias, scale=self.scale, softcap=self.softcap)

    def activate(self, product: Tensor) -> Tensor:
        """Raw products (of any shape) → logits."""
        logits = product if self.scale == 1.0 else product * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def logits(self, hidden: Tensor) -> Tensor:
        """All logits [n, V] of a few positions [n, d], float32 or wider."""
        weight = self.weight.to(hidden.dtype)
        if hidden.dtype is wide_dtype(hidden.dtype):
            return self.activate(linear(hidden, weight, None if self.bias is None else self.bias.to(hidden.dtype)))
        product: Tensor = HeadProduct.apply(hidden, weight, self.gradient_to)
        return self.activate(product if self.bias is None else product + wide(self.bias))


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
    product: Tensor = SupportProduct.apply(hidden, head.weight, head.gradient_to, token_ids)
    return head.activate(product if head.bias is None else product + wide(head.bias)[token_ids])


def support_values(
    hidden: Tensor, head: LMHead, support_ids: Tensor, temperature: float, *, full_vocabulary: bool
) -> Tensor:
    """Logits / temperature [N, K] on a support, for student and teacher alike.

    Both must come from this function on rows of one layout: then equal models give equal bits, and a loss between them
    a gradient of exactly 0.

    Args:
        hidden: [N, d].
        head: of the same model.
        support_ids: [N, K].
        temperature: divides the logits.
        full_vocabulary: the support is the first K ids of the vocabulary at each position. Then all [N, V] logits exist
            at the same time, with gradient if `hidden` has one; `ChunkedScores` asks for a few positions at a time.
    """
    if full_vocabulary:
        return head.logits(hidden)[:, : support_ids.shape[1]] / temperature
    return support_logits(hidden, head, support_ids) / temperature


def log_normaliser(hidden: Tensor, head: LMHead, temperature: float = 1.0, chunk: int = CHUNK) -> Tensor:
    """The log-normaliser log Σ_v exp(z_v / temperature) at each position [N], with gradients.

    Chunks of `chunk` positions are recomputed in the backward pass, so that only [chunk, V] logits exist at a time.
    """
    parts = [_checkpointed(_log_normaliser, h, head, temperature) for h in hidden.split(chunk)]
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
    return torch.cat([_checkpointed(_token_logprobs, h, head, temperature, ids, top_p) for h, ids in pairs])


def _checkpointed(function: Any, hidden: Tensor, head: LMHead, *rest: Any) -> Tensor:
    """Call `function` with gradient checkpointing: its intermediates are recomputed in the backward pass."""
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
