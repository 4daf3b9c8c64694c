"""The token mean over the whole step, whatever the micro-batches look like."""

import pytest
import torch

from opdlight.losses import token_mean


def test_shares_of_unequal_micro_batches_add_up_to_one_mean() -> None:
    x = torch.arange(10, dtype=torch.float64).requires_grad_()
    shares = sum(token_mean(part, 10) for part in x.split([1, 7, 2]))
    torch.testing.assert_close(shares, x.detach().mean())
    shares.backward()
    torch.testing.assert_close(x.grad, torch.full((10,), 0.1, dtype=torch.float64))


def test_no_tokens_give_zero_with_a_graph() -> None:
    empty = torch.zeros(0, requires_grad=True)
    share = token_mean(empty, 5)
    share.backward()
    assert share.item() == 0.0
    assert empty.grad is not None


@pytest.mark.parametrize("tokens", [0, -1])
def test_a_step_without_tokens_is_refused(tokens: int) -> None:
    with pytest.raises(ValueError, match="global_tokens"):
        token_mean(torch.zeros(0), tokens)
