"""Local support matching against a float64 loop, its closed-form gradient, and what must not change it."""

import math

import pytest
import torch
from torch import Tensor

from opdlight.losses import TopKReverseKL, renormalised_reverse_kl

ALL = slice(None)


def loop(z: list[float], log_q: list[float], valid: list[bool]) -> tuple[float, list[float]]:
    """ℓ and ∂ℓ/∂z of one position in plain Python (float64)."""
    at = [j for j, v in enumerate(valid) if v]
    if not at:
        return 0.0, [0.0] * len(z)
    pi = {j: math.exp(z[j]) / sum(math.exp(z[i]) for i in at) for j in at}
    q = {j: math.exp(log_q[j]) / sum(math.exp(log_q[i]) for i in at) for j in at}
    loss = sum(pi[j] * math.log(pi[j] / q[j]) for j in at)
    return loss, [pi[j] * (math.log(pi[j] / q[j]) - loss) if j in pi else 0.0 for j in range(len(z))]


def example(n: int = 6, k: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(n, k, generator=generator, dtype=torch.float64) * 2
    log_q = (torch.randn(n, k, generator=generator, dtype=torch.float64) * 2).log_softmax(-1) - 0.3
    valid = torch.rand(n, k, generator=generator) > 0.3
    valid[0], valid[1], valid[2] = True, False, torch.arange(k) == 2
    return z.to(dtype), log_q.to(dtype), valid


def value_and_gradient(z: Tensor, log_q: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    z = z.detach().clone().requires_grad_()
    loss = renormalised_reverse_kl(z, log_q, valid)
    loss.sum().backward()
    assert z.grad is not None
    return loss.detach(), z.grad


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 2e-3)], ids=str
)
def test_value_and_gradient_equal_the_loop(dtype: torch.dtype, tolerance: float) -> None:
    z, log_q, valid = example(dtype=dtype)
    loss, gradient = value_and_gradient(z, log_q, valid)
    for i in range(len(z)):
        expected, slope = loop(z[i].tolist(), log_q[i].tolist(), valid[i].tolist())
        assert loss[i].item() == pytest.approx(expected, abs=tolerance)
        torch.testing.assert_close(
            gradient[i].double(),
            torch.tensor(slope, dtype=torch.float64),
            atol=tolerance,
            rtol=4e-3 if dtype is torch.bfloat16 else 0,
        )
    assert loss.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)


def test_gradient_equals_finite_differences() -> None:
    z, log_q, valid = example()
    assert torch.autograd.gradcheck(lambda x: renormalised_reverse_kl(x, log_q, valid), z.requires_grad_())


def test_row_without_valid_entry_is_zero_with_a_graph() -> None:
    z, log_q, valid = example()
    log_q[1] = float("nan")  # filler may hold anything
    loss, gradient = value_and_gradient(z, log_q, valid)
    assert loss[1] == 0
    assert torch.equal(gradient[1], torch.zeros(5, dtype=torch.float64))
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_invalid_entries_are_as_if_left_out() -> None:
    z, log_q, _ = example()
    valid = torch.tensor([True, True, False, True, False]).expand(len(z), -1)
    at = [0, 1, 3]
    loss, gradient = value_and_gradient(z, log_q, valid)
    alone, alone_gradient = value_and_gradient(z[:, at], log_q[:, at], valid[:, at])
    torch.testing.assert_close(loss, alone)
    torch.testing.assert_close(gradient[:, at], alone_gradient)
    assert not gradient[:, [2, 4]].any()


def test_order_of_the_support_does_not_matter() -> None:
    z, log_q, valid = example()
    order = torch.tensor([3, 0, 4, 1, 2])
    loss, gradient = value_and_gradient(z, log_q, valid)
    permuted, permuted_gradient = value_and_gradient(z[:, order], log_q[:, order], valid[:, order])
    torch.testing.assert_close(permuted, loss)
    torch.testing.assert_close(permuted_gradient, gradient[:, order])


def test_a_constant_per_position_cancels() -> None:
    z, log_q, valid = example()
    shift = -300 * torch.arange(6, dtype=torch.float64).unsqueeze(1)  # however low the valid logits lie
    torch.testing.assert_close(
        renormalised_reverse_kl(z + shift, log_q - 2 * shift, valid), renormalised_reverse_kl(z, log_q, valid)
    )


def test_whole_vocabulary_is_the_exact_reverse_kl() -> None:
    z, log_q, _ = example(k=9)
    log_q = log_q.log_softmax(-1)
    expected = torch.nn.functional.kl_div(log_q, z.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(renormalised_reverse_kl(z, log_q, torch.ones_like(z, dtype=torch.bool)), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equal_models_give_zero_loss_and_zero_gradient(dtype: torch.dtype) -> None:
    z, _, valid = example(dtype=dtype)
    loss, gradient = value_and_gradient(z, z.log_softmax(-1), valid)
    assert loss.abs().max() < 1e-6
    assert gradient.abs().max() < 1e-6


def test_far_apart_models_stay_finite() -> None:
    z = torch.tensor([[1e4, -1e4, 0.0]])
    loss, gradient = value_and_gradient(z, -z, torch.ones(1, 3, dtype=torch.bool))
    assert loss.item() == pytest.approx(2e4)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("k", [1, 0, -3])
def test_a_support_of_one_token_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=r"`loss\.k` to be at least 2"):
        TopKReverseKL(k=k)


def test_needs_only_the_support() -> None:
    needs = TopKReverseKL(k=7).needs
    assert (needs.support_k, needs.student_normaliser, needs.sampled) == (7, False, False)
