"""The probability outside the support: exact expectations of the sampled tail, a tail below float32's reach."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from opdlight.losses import SupportMatching
from opdlight.losses.base import SupportName
from tests.losses.logit_tables import V, batch_of, example, scores_of, value_and_gradient
from tests.losses.reference import softmax


def expectation(loss: SupportMatching, z: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """E over y ~ π of ℓ and of its gradient, by enumeration: z, q [1, V]."""
    y = torch.arange(V)
    pi = z.softmax(-1).squeeze(0)
    x = z.expand(V, -1).clone().requires_grad_()
    per_token = loss(scores_of(loss.needs, x, q.expand(V, -1), y), batch_of(y))
    (gradient,) = torch.autograd.grad((pi * per_token).sum(), x)
    return (pi * per_token).sum().detach(), gradient.sum(0)


@pytest.mark.parametrize("support", ["teacher_top_k", "student_top_k"])
def test_sampled_tail_is_unbiased_with_stop_gradient_and_in_value_alone_with_reverse_kl(support: SupportName) -> None:
    z, q, y = (x[:1] for x in example())
    exact, slope = value_and_gradient(SupportMatching(support="full_vocabulary"), z, q, y)
    stopped = SupportMatching(support=support, k=4, outside="sampled_tail", divergence="stop_gradient")
    value, gradient = expectation(stopped, z, q)
    torch.testing.assert_close(value, exact[0])
    torch.testing.assert_close(gradient, slope[0])

    plain = replace(stopped, divergence="reverse_kl")
    value, gradient = expectation(plain, z, q)
    torch.testing.assert_close(value, exact[0])
    x = z.clone().requires_grad_()
    ids = scores_of(plain.needs, z, q, y).support
    assert ids is not None
    (of_mass,) = torch.autograd.grad(x.softmax(-1).gather(1, ids.token_ids).sum(), x)
    torch.testing.assert_close(gradient - slope[0], of_mass[0])


def test_a_tail_too_small_for_float32_still_pulls() -> None:
    z = torch.tensor([[20.0, 0.0, -1.0]], requires_grad=True)  # π(2) = e⁻²¹: the tail of {0, 1}
    q = torch.tensor([[1.0, 0.0, 3.0]])
    loss = SupportMatching(k=2, support="student_top_k", outside="tail_bucket", divergence="forward_kl")
    (gradient,) = torch.autograd.grad(
        loss(scores_of(loss.needs, z, q, torch.tensor([0])), batch_of(torch.tensor([0]))), z
    )
    # ∂/∂z_2 of −q(tail)·log max(tail, 1e−6) = −q(2)·π(2)(1 − π(2))/1e−6 and nothing else is of that size
    assert gradient[0, 2] == pytest.approx(-float(softmax(q[0])[2]) * math.exp(-21) / 1e-6, rel=0.02)
