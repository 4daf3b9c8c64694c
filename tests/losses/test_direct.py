"""The k1, k2 and k3 estimates: exact expectations over the next token."""

import pytest
import torch

from opdlight.losses import DirectEstimate
from opdlight.losses.direct import k1, k2, k3
from tests.losses.logit_tables import exact, logits, one_step


def test_k3_has_the_gradient_of_the_forward_kl_and_k1_none() -> None:
    z, q = logits(1), logits(2)
    torch.testing.assert_close(one_step(DirectEstimate(estimate="k3"), z, q)[1], exact(z, q, "forward_kl")[1])
    x = z.clone().requires_grad_()
    log_pi = x.log_softmax(-1)
    nothing = (log_pi.exp().detach() * k1(log_pi, q.log_softmax(-1))).sum()
    assert torch.autograd.grad(nothing, x)[0].abs().max() < 1e-12


def test_k1_and_k3_are_unbiased_and_k2_is_not() -> None:
    z, q = logits(1), logits(2)
    log_pi, log_q = z.log_softmax(-1), q.log_softmax(-1)
    kl = exact(z, q)[0]
    for estimate in (k1, k3):
        torch.testing.assert_close((log_pi.exp() * estimate(log_pi, log_q)).sum(), kl)
    assert abs((log_pi.exp() * k2(log_pi, log_q)).sum() - kl) > 1e-2
    assert (k3(log_pi, log_q) >= 0).all()


def test_k1_as_a_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="averages to 0"):
        DirectEstimate(estimate="k1")
