"""Matrix products of bfloat16 numbers that are summed, and come out, in float32.

A sum rounded to bfloat16 has steps of 1/8 at 16, the size of common logits. The products themselves are exact in
float32, so nothing is lost but the order of a sum.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float32, or the dtype itself if it is wider."""
    return torch.promote_types(dtype, torch.float32)


def wide(tensor: Tensor) -> Tensor:
    """A tensor in `wide_dtype`."""
    return tensor.to(wide_dtype(tensor.dtype))


def wide_product(one: Tensor, other: Tensor) -> Tensor:
    """The matrix product of two tensors of one dtype, in `wide_dtype`; of float32 or wider just `one @ other`.

    On a GPU the tensor cores take bfloat16 and sum in float32. A CPU has no such product: both are copied to float32.

    Args:
        one: [n, k], or [b, n, k].
        other: [k, m], or [b, k, m].

    >>> big, small = torch.tensor([[256.0, 1.0]]).bfloat16(), torch.ones(2, 1).bfloat16()
    >>> wide_product(big, small).item(), (big @ small).item()
    (257.0, 256.0)
    """
    if one.dtype is wide_dtype(one.dtype):
        return one @ other
    if one.is_cuda:
        product: Tensor = (torch.mm if one.dim() == 2 else torch.bmm)(one, other, out_dtype=torch.float32)
        return product
    return wide(one) @ wide(other)


class SummedInFloat32(torch.autograd.Function):
    """weight → a float32 stand-in of its shape, without memory, for products that hand their gradients to it.

    Autograd sums gradients in the dtype of the tensor they belong to. Those of many chunks are summed here and rounded
    to the weight's dtype once.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        """Zeros that share one number; nobody reads them."""
        ctx.dtype = weight.dtype
        return weight.new_zeros((), dtype=torch.float32).expand(weight.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The sum, rounded."""
        return grad.to(ctx.dtype)


class HeadProduct(torch.autograd.Function):
    """hidden [n, d], weight [V, d], stand-in [V, d] → hidden @ weightᵀ [n, V] in float32, for bfloat16 hidden states.

    The gradient of the weight goes to the stand-in, in float32 (see `SummedInFloat32`), none to `weight`.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, stand_in: Tensor) -> Tensor:
        """The products [n, V]."""
        ctx.save_for_backward(hidden, weight)
        return wide_product(hidden, weight.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        """The gradients of hidden states [n, d] and stand-in [V, d] from that of the products [n, V]."""
        hidden, weight = ctx.saved_tensors
        grad = grad.to(hidden.dtype)
        return (
            grad @ weight if ctx.needs_input_grad[0] else None,
            None,
            wide_product(grad.T, hidden) if ctx.needs_input_grad[2] else None,
        )
