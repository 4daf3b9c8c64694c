"""The options of the sampled-token estimator and its relatives: exact expectations by enumeration, clips by hand."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from opdlight.losses import (
    DirectEstimate,
    SampledToken,
    SupportMatching,
    TurnWeighted,
)
from opdlight.losses.base import Loss
from opdlight.losses.sampled import clipped_surrogate
from opdlight.types import SupportScores
from tests.losses.logit_tables import WIDTH as V
from tests.losses.logit_tables import batch_of, exact, logits, one_step, scores_of

T = 4


@pytest.mark.parametrize(
    "loss",
    [
        SampledToken(),
        SampledToken(gamma=1.0),
        SampledToken(baseline="expected", k=3),
        SampledToken(clip=0.2, dual_clip=3.0),
        DirectEstimate(estimate="k2"),
    ],
    ids=repr,
)
def test_one_step_estimators_have_the_gradient_of_the_reverse_kl(loss: Loss) -> None:
    z, q = logits(1), logits(2)
    torch.testing.assert_close(one_step(loss, z, q)[1], exact(z, q)[1])


def test_running_mean_does_not_change_the_expected_gradient() -> None:
    z, q = logits(1), logits(2)
    loss = SampledToken(baseline="running_mean")
    loss.running.total, loss.running.count = 3.0, 2
    torch.testing.assert_close(one_step(loss, z, q)[1], exact(z, q)[1])


@pytest.mark.parametrize("baseline", ["expected", "running_mean"])
def test_baselines_take_noise_away(baseline: Any) -> None:
    z, q = logits(1), logits(2)
    pi = z.softmax(-1).squeeze(0)

    def variance(loss: SampledToken) -> float:
        x = z.expand(V, -1).clone().requires_grad_()
        batch = batch_of(torch.arange(V), trajectory_index=torch.arange(V))
        per_token = loss(scores_of(loss.needs, x, q.expand(V, -1), torch.arange(V)), batch)
        each = torch.autograd.grad(per_token.sum(), x)[0]
        return float((pi[:, None] * (each - (pi[:, None] * each).sum(0)) ** 2).sum())

    loss = SampledToken(baseline=baseline)
    if baseline == "running_mean":
        loss.running.total, loss.running.count = float(exact(z, q)[0]), 1
    else:
        loss = replace(loss, k=V)
    assert variance(loss) < variance(SampledToken())


class Tree:
    """A policy over all sequences of T tokens: logits by prefix, so that every prefix is its own state."""

    def __init__(self, seed: int) -> None:
        self.states = {p: i for i, p in enumerate(p for n in range(T) for p in itertools.product(range(V), repeat=n))}
        self.logits = logits(seed, len(self.states))

    def rows(self, sequence: tuple[int, ...]) -> Tensor:
        return torch.tensor([self.states[sequence[:t]] for t in range(T)])


def sequence_gradient(loss: Loss, student: Tree, teacher: Tree, **fields: Tensor) -> Tensor:
    """E over all V^T sequences of the gradient, in the student's logits."""
    theta = student.logits.clone().requires_grad_()
    sequences = list(itertools.product(range(V), repeat=T))
    rows = torch.cat([student.rows(s) for s in sequences])
    y = torch.tensor(sequences).flatten()
    number = torch.arange(len(sequences)).repeat_interleave(T)
    batch = batch_of(y, trajectory_index=number, token_position=torch.arange(T).repeat(len(sequences)), **fields)
    scores = scores_of(loss.needs, theta[rows], teacher.logits[rows], y)
    assert scores.student_sampled is not None
    probability = scores.student_sampled.detach().view(-1, T).sum(1).exp()
    total = (probability.repeat_interleave(T) * loss(scores, batch)).sum()
    (gradient,) = torch.autograd.grad(total, theta)
    return gradient


def exact_sequence_gradient(student: Tree, teacher: Tree) -> Tensor:
    """∇ Σ_s π(s) log(π(s)/q(s)) over all sequences, by autograd."""
    theta = student.logits.clone().requires_grad_()
    sequences = list(itertools.product(range(V), repeat=T))
    rows, y = torch.stack([student.rows(s) for s in sequences]), torch.tensor(sequences)
    log_pi, log_q = (
        table.log_softmax(-1)[rows].gather(2, y.unsqueeze(2)).squeeze(2).sum(1) for table in (theta, teacher.logits)
    )
    (gradient,) = torch.autograd.grad((log_pi.exp() * (log_pi - log_q)).sum(), theta)
    return gradient


def test_gamma_one_is_the_gradient_of_the_sequence_kl_over_all_sequences_and_less_is_not() -> None:
    student, teacher = Tree(3), Tree(4)
    true = exact_sequence_gradient(student, teacher)
    torch.testing.assert_close(sequence_gradient(SampledToken(gamma=1.0), student, teacher), true)
    running = SampledToken(gamma=1.0, baseline="running_mean")
    running.running.total, running.running.count = 1.0, 2
    torch.testing.assert_close(sequence_gradient(running, student, teacher), true)
    expected = SampledToken(gamma=1.0, baseline="expected", k=3)
    torch.testing.assert_close(sequence_gradient(expected, student, teacher), true)
    for gamma in (0.0, 0.5):
        assert (sequence_gradient(SampledToken(gamma=gamma), student, teacher) - true).abs().max() > 1e-3


def test_token_level_gradient_is_that_of_the_local_kls_on_frozen_prefixes() -> None:
    student, teacher = Tree(3), Tree(4)
    theta = student.logits.clone().requires_grad_()
    loss = SupportMatching(support="full_vocabulary")
    zeros = torch.zeros(len(theta), dtype=torch.long)
    local = loss(scores_of(loss.needs, theta, teacher.logits, zeros), batch_of(zeros))
    visits = torch.zeros(len(theta), dtype=torch.float64)
    log_pi = student.logits.log_softmax(-1)
    for prefix, row in student.states.items():
        visits[row] = math.exp(sum(float(log_pi[student.states[prefix[:t]], prefix[t]]) for t in range(len(prefix))))
    (frozen,) = torch.autograd.grad((visits * local).sum(), theta)
    torch.testing.assert_close(sequence_gradient(SampledToken(), student, teacher), frozen)


def test_clipped_surrogate_by_hand() -> None:
    ratio = torch.tensor([1.0, 1.5, 0.5, 1.5, 0.5, 4.0], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0, -2.0], dtype=torch.float64)
    value = clipped_surrogate(ratio, advantage, 0.2, 3.0)
    #                  inside     above: cut   below: kept   bad above: kept  bad below: cut  dual clip at 3
    assert value.tolist() == pytest.approx([-2.0, -2.4, -1.0, 3.0, 1.6, 6.0])
    (slope,) = torch.autograd.grad(value.sum(), ratio)
    assert slope.tolist() == [-2.0, 0.0, -2.0, 2.0, 0.0, 0.0]
    assert clipped_surrogate(ratio, advantage, 0.2)[-1].item() == 8.0


def test_later_updates_use_the_rewards_of_the_rollout_and_its_ratio() -> None:
    log_pi = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    rolled_out, log_q = torch.tensor([-1.1, -1.0]).double(), torch.tensor([-0.5, -3.0]).double()
    scores = SupportScores(support=None, student_sampled=log_pi, teacher_sampled=log_q)
    batch = replace(batch_of(torch.tensor([0, 1])), rollout_logprobs=rolled_out)
    loss = SampledToken()(scores, batch)
    torch.testing.assert_close(loss.detach(), (log_pi - log_q).detach())
    loss.sum().backward()
    torch.testing.assert_close(log_pi.grad, (log_pi - rolled_out).exp().detach() * (rolled_out - log_q))


def test_extrapolation_aims_at_the_extrapolated_teacher() -> None:
    z, q, start = logits(1), logits(2), logits(5)
    loss = SampledToken(extrapolation=1.5)
    assert loss.needs.reference

    class WithReference:
        needs = loss.needs

        def __call__(self, scores: SupportScores, batch: Any) -> Tensor:
            reference = start.log_softmax(-1)[0][batch.target_ids]
            return loss(replace(scores, reference_sampled=reference), batch)

    aim = (1.5 * q.log_softmax(-1) - 0.5 * start.log_softmax(-1)).log_softmax(-1)  # log q + (λ−1)(log q − log p_ref)
    torch.testing.assert_close(one_step(WithReference(), z, q)[1], exact(z, aim)[1])


def test_reward_weight_adds_the_group_advantage() -> None:
    z, q, y = logits(1, 3), logits(2, 3), torch.tensor([0, 1, 2])
    advantage = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)

    def gradient(weight: float) -> Tensor:
        x = z.clone().requires_grad_()
        loss = SampledToken(reward_weight=weight)
        batch = batch_of(y, trajectory_index=torch.arange(3), group_advantage=advantage)
        return torch.autograd.grad(loss(scores_of(loss.needs, x, q, y), batch).sum(), x)[0]

    x = z.clone().requires_grad_()
    (plain,) = torch.autograd.grad(-(advantage * x.log_softmax(-1).gather(1, y[:, None]).squeeze(1)).sum(), x)
    torch.testing.assert_close(gradient(2.0) - gradient(0.0), 2 * plain)


def test_top_p_policy_is_the_renormalised_nucleus() -> None:
    z = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64).log()
    q, loss = logits(2), SampledToken(policy="top_p")
    assert loss.needs.top_p
    from opdlight.models.lm_head import LMHead, token_logprobs

    head = LMHead(weight=torch.eye(V, dtype=torch.float64))
    inside = token_logprobs(z, head, torch.tensor([1]), top_p=0.9)
    assert inside.exp().item() == pytest.approx(0.3 / 0.95)  # 0.5 + 0.3 + 0.15 is the first sum ≥ 0.9
    assert token_logprobs(z, head, torch.tensor([3]), top_p=0.9).exp().item() == pytest.approx(0.05)  # it was sampled
    assert token_logprobs(z, head, torch.tensor([0]), top_p=0.4).item() == pytest.approx(0.0)
    x = z.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: token_logprobs(t, head, torch.tensor([1]), top_p=0.9), x)
    assert q.shape == z.shape


def test_running_mean_counts_from_the_next_update_on_and_survives_a_checkpoint() -> None:
    loss = SampledToken(baseline="running_mean")
    scores = SupportScores(
        support=None, student_sampled=torch.tensor([-1.0, -1.0]), teacher_sampled=torch.tensor([-2.0, -4.0])
    )
    batch = batch_of(torch.tensor([0, 1]))
    loss(scores, batch)
    assert loss.running.value() == 0
    loss.end_update()
    assert loss.running.value() == 2.0
    again = SampledToken(baseline="running_mean")
    again.load_state_dict(loss.state_dict())
    assert again.running.value() == 2.0
    around = TurnWeighted(loss=again)
    around(scores, batch)
    around.end_update()
    assert again.running.count == 4
    assert around.state_dict() == again.state_dict()


def test_running_mean_is_that_of_every_process() -> None:
    loss = SampledToken(baseline="running_mean")
    loss.running.add(torch.tensor([1.0, 2.0]))
    loss.end_update(lambda mine: [mine, (9.0, 2)])  # another process has seen two values that add up to 9
    assert loss.running.value() == pytest.approx(12 / 4)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: SampledToken(advantage="top_k_kl"), "does not depend on the sampled token"),
        (lambda: SampledToken(clip=1.5), r"`loss\.clip` to be in \(0, 1\)"),
        (lambda: SampledToken(dual_clip=3.0), r"`loss\.dual_clip` to be above 1 beside a `loss\.clip`"),
        (lambda: SampledToken(clip=0.2, dual_clip=0.5), r"`loss\.dual_clip` to be above 1"),
        (lambda: SampledToken(extrapolation=-1.0), r"`loss\.extrapolation`"),
        (lambda: SampledToken(reward_weight=-1.0), r"`loss\.reward_weight`"),
        (lambda: SampledToken(k=1), r"`loss\.k` to be at least 2"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(make: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()


def test_top_k_kl_as_an_advantage_has_no_gradient_on_average() -> None:
    z, q = logits(1), logits(2)
    x = z.expand(V, -1).clone().requires_grad_()
    pi = z.softmax(-1).squeeze(0)
    kl = exact(z, q)[0]
    log_pi = x.log_softmax(-1).diagonal()
    (gradient,) = torch.autograd.grad((pi * kl * log_pi).sum(), x)
    assert gradient.sum(0).abs().max() < 1e-12
