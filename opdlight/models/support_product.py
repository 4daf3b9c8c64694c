"""Products of hidden states with chosen rows of the LM head, and their gradients.

Letters and precision as in `lm_head.py`: N positions, d hidden size, V rows, K ids a position, U distinct ids.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from opdlight.models.wide_product import wide_dtype, wide_product

# Above this many distinct ids per support entry (U > GATHER_RATIO · K) fetching K rows a position is cheaper than one
# product with the union of all rows: the union costs 2NUd operations at the speed of a matrix product, the gather moves
# NKd numbers at the speed of memory. Measured with tools/bench_lm_head.py on one x86 thread in float32 (K = 32, d = 128
# to 576): the union takes 0.8 of the gather's time at U/K = 62, 0.96 at 140, and 1.7 to 2.3 times as long at 190.
GATHER_RATIO = 140
PART_ELEMENTS = 2**23  # numbers in the largest intermediate of a product (32 MB in float32)


class SupportProduct(torch.autograd.Function):
    """hidden [N, d], weight [V, d], stand-in [V, d], ids [N, K] → products [N, K], float32 or wider.

    Either one product with the rows of all distinct ids (the union), of which each position takes its K, or a gather of
    K rows for each position. Written by hand because autograd would keep every gathered row until the backward pass, or
    make a dense [V, d] gradient for each part. The gradient of the weight goes to the stand-in, as in `HeadProduct`; it
    may be the weight itself.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, stand_in: Tensor, token_ids: Tensor) -> Tensor:
        """The products [N, K]."""
        union, slot = torch.unique(token_ids, return_inverse=True)  # [U], [N, K] places in the union
        ctx.save_for_backward(hidden, weight, union, slot)
        rows = weight.index_select(0, union).to(hidden.dtype)  # [U, d]
        products = torch.empty(slot.shape, dtype=wide_dtype(hidden.dtype), device=hidden.device)
        gather = _gathers(slot, union)
        for part in _parts(slot, rows, gather):
            if gather:
                products[part] = wide_product(rows[slot[part]], hidden[part].unsqueeze(2)).squeeze(2)
            else:
                products[part] = wide_product(hidden[part], rows.T).gather(1, slot[part])
        return products

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        """The gradients of hidden states [N, d] and stand-in [V, d] from that of the products [N, K]."""
        hidden, weight, union, slot = ctx.saved_tensors
        for_hidden, for_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
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
                    grad_rows += wide_product(spread.T, hidden[part])
        if grad_rows is None:
            return grad_hidden, None, None, None
        return grad_hidden, None, grad.new_zeros(weight.shape).index_copy_(0, union, grad_rows), None


def _gathers(slot: Tensor, union: Tensor) -> bool:
    return len(union) > GATHER_RATIO * slot.shape[1]


def _parts(slot: Tensor, rows: Tensor, gather: bool) -> Iterator[slice]:
    """Slices of positions whose intermediate stays below PART_ELEMENTS numbers."""
    per_position = slot.shape[1] * rows.shape[1] if gather else len(rows)
    size = max(1, PART_ELEMENTS // max(per_position, 1))
    return (slice(start, start + size) for start in range(0, len(slot), size))
