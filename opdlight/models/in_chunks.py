"""A sum over positions and its gradient, from a few positions at a time."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from opdlight.models.lm_head import LMHead
from opdlight.models.wide_product import wide

Each = Callable[[Tensor, LMHead, Tensor], Tensor]  # hidden states [n, d], head, positions [n] → values [n]


def sum_in_chunks(each: Each, hidden: Tensor, head: LMHead, chunk: int) -> Tensor:
    """Σ_t each(hidden, head, t) [], with gradients to hidden states and head.

    `chunk` positions are differentiated as soon as they are computed, and of what was made for them only the gradients
    stay. So the memory is that of one chunk, and nothing is computed a second time in the backward pass, where the
    gradients are multiplied with that of the sum.

    Args:
        each: called once for each chunk; the value of a position depends on this position alone.
        hidden: [N, d].
        head: of the same model. The gradients of its tensors are summed in float32 or wider.
        chunk: n, positions at a time.
    """
    tensors = {id(t): t for t in (head.weight, head.gradient_to, head.bias) if t is not None}
    leaf = {name: t.detach().requires_grad_(t.requires_grad) for name, t in tensors.items()}
    cut_off = replace(
        head,
        weight=leaf[id(head.weight)],
        gradient_to=leaf[id(head.gradient_to)],
        bias=None if head.bias is None else leaf[id(head.bias)],
    )
    trained = {name: t for name, t in leaf.items() if t.requires_grad}
    total, for_hidden, for_head = wide(hidden.new_zeros(())), list[Tensor](), dict[int, Tensor]()
    for at in torch.arange(len(hidden), device=hidden.device).split(chunk):
        part = hidden[at].detach().requires_grad_()
        values = each(part, cut_off, at)
        total = total + values.detach().sum()
        if not values.requires_grad:  # without gradients, or a loss that is constant here
            for_hidden.append(torch.zeros_like(part))
            continue
        of_part, *others = torch.autograd.grad(values.sum(), [part, *trained.values()], allow_unused=True)
        for_hidden.append(torch.zeros_like(part) if of_part is None else of_part)
        for name, gradient in zip(trained, others, strict=True):
            if gradient is not None:
                for_head[name] = for_head[name].add_(gradient) if name in for_head else wide(gradient)
    known = [(hidden, torch.cat(for_hidden)), *((tensors[name], gradient) for name, gradient in for_head.items())]
    with_graph: Tensor = _Known.apply(total, *(t for t, _ in known), *(g for _, g in known))
    return with_graph


class _Known(torch.autograd.Function):
    """A number [] whose gradients with respect to some tensors are known: value, tensors, their gradients → value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *tensors_and_gradients: Tensor) -> Tensor:
        tensors = tensors_and_gradients[: len(tensors_and_gradients) // 2]
        ctx.dtypes = [t.dtype for t in tensors]
        ctx.save_for_backward(*tensors_and_gradients[len(tensors) :])
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [known.mul_(grad) for known in ctx.saved_tensors]  # in place: nobody else has them
        return (None, *(g.to(dtype) for g, dtype in zip(scaled, ctx.dtypes, strict=True)), *[None] * len(scaled))
