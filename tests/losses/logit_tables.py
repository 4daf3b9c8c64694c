"""Batches for models that are mere tables of logits; `opdlight.lab.estimators.chains.table_scores` scores them."""

from dataclasses import replace

import torch
from torch import Tensor

from opdlight.lab.estimators.chains import table_batch, table_scores
from opdlight.losses import Loss, SupportMatching
from opdlight.losses.divergences import DivergenceName
from opdlight.types import TokenBatch

V = 9  # vocabulary of `example`; `logits` are of WIDTH
WIDTH = 4

scores_of = table_scores


def batch_of(targets: Tensor, **fields: Tensor) -> TokenBatch:
    """One sequence in which every position carries loss; `fields` replace what is counted up."""
    return replace(table_batch(targets, max(len(targets), 1)), **{"global_tokens": max(len(targets), 1), **fields})  # type: ignore[arg-type]


def example(dtype: torch.dtype = torch.float64, n: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits, teacher logits [N, V], sampled tokens [N]; tokens lie inside and outside every support."""
    generator = torch.Generator().manual_seed(5)
    z, q = (torch.randn(n, V, generator=generator, dtype=torch.float64) * 1.5 for _ in range(2))
    return z.to(dtype), q.to(dtype), torch.randint(V, (n,), generator=generator)


def value_and_gradient(loss: Loss, z: Tensor, q: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    z = z.detach().clone().requires_grad_()
    per_token = loss(scores_of(loss.needs, z, q, y), batch_of(y))
    per_token.sum().backward()
    assert z.grad is not None
    return per_token.detach(), z.grad


def logits(seed: int, rows: int = 1, width: int = WIDTH) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_step(loss: Loss, z: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """E over y ~ π of the loss and of its gradient in z [1, V]."""
    width = z.shape[1]
    y, pi = torch.arange(width), z.softmax(-1).squeeze(0)
    x = z.expand(width, -1).clone().requires_grad_()
    batch = batch_of(y, trajectory_index=torch.arange(width))
    value = (pi * loss(scores_of(loss.needs, x, q.expand(width, -1), y), batch)).sum()
    return value.detach(), torch.autograd.grad(value, x)[0].sum(0)


def exact(z: Tensor, q: Tensor, divergence: DivergenceName = "reverse_kl") -> tuple[Tensor, Tensor]:
    """The divergence over the vocabulary [] and its gradient in z [1, V]."""
    x = z.clone().requires_grad_()
    loss = SupportMatching(support="full_vocabulary", divergence=divergence)
    value = loss(scores_of(loss.needs, x, q, torch.tensor([0])), batch_of(torch.tensor([0])))
    return value.detach()[0], torch.autograd.grad(value.sum(), x)[0][0]
