"""The policy-gradient surrogate: its gradient is the estimator, its value the k1 estimate."""

import itertools

import pytest
import torch
from torch import Tensor

from opdlight.losses import SampledToken, discounted_to_go
from opdlight.types import SupportScores, TokenBatch


def batch_of(trajectory: list[int], position: list[int]) -> TokenBatch:
    """A batch of which only the order of the tokens matters."""
    n = len(trajectory)
    zeros = torch.zeros(n, dtype=torch.long)
    return TokenBatch(
        input_ids=zeros[None],
        attention_mask=zeros[None].bool(),
        position_ids=zeros[None],
        row_index=zeros,
        col_index=zeros,
        target_ids=zeros,
        sampled_logprobs=zeros.float(),
        turn_index=zeros,
        token_position=torch.tensor(position, dtype=torch.long),
        trajectory_index=torch.tensor(trajectory, dtype=torch.long),
        task_index=zeros,
        group_advantage=torch.zeros(n),
        tasks=("t",),
        global_tokens=n,
    )


def to_go_by_loop(r: list[float], trajectory: list[int], position: list[int], gamma: float) -> list[float]:
    n = range(len(r))
    return [
        sum(
            gamma ** (position[j] - position[i]) * r[j]
            for j in n
            if trajectory[j] == trajectory[i] and position[j] >= position[i]
        )
        for i in n
    ]


# Two trajectories, interleaved and out of order, with gaps where tokens were masked or belong to no loss.
TRAJECTORY = [0, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0]
POSITION = [5, 0, 1, 3, 0, 9, 2, 2, 12, 7, 3]


@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.9, 1.0])
def test_to_go_equals_the_double_loop(gamma: float) -> None:
    r = torch.randn(len(TRAJECTORY), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = discounted_to_go(r, torch.tensor(TRAJECTORY), torch.tensor(POSITION), gamma)
    torch.testing.assert_close(got.tolist(), to_go_by_loop(r.tolist(), TRAJECTORY, POSITION, gamma))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_gradient_is_the_estimator_and_value_the_log_ratio(gamma: float) -> None:
    generator = torch.Generator().manual_seed(1)
    log_pi = -torch.rand(11, generator=generator, dtype=torch.float64)
    log_q = -torch.rand(11, generator=generator, dtype=torch.float64)
    log_pi.requires_grad_()
    scores = SupportScores(support=None, student_sampled=log_pi, teacher_sampled=log_q)
    loss = SampledToken(gamma=gamma)(scores, batch_of(TRAJECTORY, POSITION))
    loss.sum().backward()
    ratio = (log_pi - log_q).detach()
    torch.testing.assert_close(loss.detach(), ratio)
    expected = to_go_by_loop(ratio.tolist(), TRAJECTORY, POSITION, gamma)
    torch.testing.assert_close(log_pi.grad, torch.tensor(expected, dtype=torch.float64))


def two_step_policy(theta: Tensor) -> dict[tuple[int, int], list[Tensor]]:
    """Every sequence of two tokens over three words → its two log-probs; the second depends on the first."""
    first = theta[0].log_softmax(-1)
    second = theta[1:].log_softmax(-1)
    return {(a, b): [first[a], second[a, b]] for a, b in itertools.product(range(3), repeat=2)}


def expected_gradient(theta: Tensor, teacher: Tensor, gamma: float) -> Tensor:
    """E over all sequences of the surrogate's gradient."""
    theta = theta.clone().requires_grad_()
    student, frozen = two_step_policy(theta), two_step_policy(teacher)
    total = torch.zeros(())
    for sequence, logprobs in student.items():
        scores = SupportScores(
            support=None, student_sampled=torch.stack(logprobs), teacher_sampled=torch.stack(frozen[sequence])
        )
        probability = sum(logprobs).exp().detach()
        total = total + probability * SampledToken(gamma=gamma)(scores, batch_of([0, 0], [0, 1])).sum()
    total.backward()
    assert theta.grad is not None
    return theta.grad


def test_gamma_one_is_the_exact_sequence_gradient_in_expectation_and_gamma_zero_is_not() -> None:
    generator = torch.Generator().manual_seed(2)
    theta, teacher = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64).unbind()
    exact = theta.clone().requires_grad_()
    student, frozen = two_step_policy(exact), two_step_policy(teacher)
    sum(sum(lp).exp() * (sum(lp) - sum(frozen[s])) for s, lp in student.items()).backward()
    torch.testing.assert_close(expected_gradient(theta, teacher, 1.0), exact.grad)
    assert not torch.allclose(expected_gradient(theta, teacher, 0.0), exact.grad)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_equal_models_give_zero(gamma: float) -> None:
    theta = torch.randn(4, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert expected_gradient(theta, theta, gamma).abs().max() < 1e-12


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_no_token_at_all(gamma: float) -> None:
    empty = torch.zeros(0, requires_grad=True)
    scores = SupportScores(support=None, student_sampled=empty, teacher_sampled=torch.zeros(0))
    loss = SampledToken(gamma=gamma)(scores, batch_of([], []))
    assert loss.shape == (0,)
    assert loss.requires_grad


@pytest.mark.parametrize("gamma", [-0.1, 1.5, float("nan")])
def test_gamma_outside_the_unit_interval_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match=r"`loss\.gamma`"):
        SampledToken(gamma=gamma)


def test_needs_only_the_sampled_token() -> None:
    needs = SampledToken().needs
    assert (needs.support, needs.normaliser, needs.sampled) == (None, False, True)
