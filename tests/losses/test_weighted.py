"""Losses made of others: the entropy gate, weights by turn and by importance."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from opdlight.losses import EntropyAware, ImportanceWeighted, Loss, SampledToken, SupportMatching, TurnWeighted
from opdlight.losses.weighted import turn_weights
from tests.losses.logit_tables import WIDTH, batch_of, logits, scores_of


def test_entropy_gate_adds_the_forward_kl_where_the_teacher_wavers() -> None:
    z, q, y = logits(1, 3), logits(2, 3), torch.tensor([0, 1, 2])
    loss = EntropyAware(k=2, threshold=1.0, weight=0.5)
    entropy = torch.tensor([0.99, 1.0, 1.3], dtype=torch.float64)
    scores = replace(scores_of(loss.needs, z, q, y), teacher_entropy=entropy)
    batch = batch_of(y)
    extra = (loss(scores, batch) - SampledToken()(scores, batch)).tolist()
    pi, teacher = z.softmax(-1).tolist(), q.softmax(-1).tolist()
    for i in range(3):
        best = sorted(range(WIDTH), key=lambda v: -teacher[i][v])[:2]
        mass = sum(teacher[i][v] for v in best)
        cover = sum(teacher[i][v] / mass * math.log(teacher[i][v] / mass / pi[i][v]) for v in best)
        assert extra[i] == pytest.approx(0.5 * cover if i else 0.0)


def test_turn_weights_by_hand() -> None:
    # trajectory 1: turns 0 (d=2), 1 (d=4), 3 (d=1); trajectory 0: turn 2 (d=9) alone, its first with loss tokens
    gap = torch.tensor([1.0, 9.0, 4.0, 3.0, 1.0], dtype=torch.float64)
    weights = turn_weights(gap, torch.tensor([1, 0, 1, 1, 1]), torch.tensor([0, 2, 1, 0, 3]), 0.2)
    assert weights.tolist() == pytest.approx([1.0, 1.0, 0.5, 1.0, 1.2], abs=1e-5)
    assert turn_weights(gap[:0], torch.zeros(0), torch.zeros(0), 0.2).shape == (0,)


@pytest.mark.parametrize("inner", [SampledToken(), SupportMatching(k=3)], ids=["sampled", "lsm"])
def test_weighted_losses_multiply(inner: Loss) -> None:
    z, q, y = logits(1, 3).requires_grad_(), logits(2, 3), torch.tensor([0, 1, 2])
    mu = torch.tensor([-1.0, -9.0, -1.5])
    batch = batch_of(y, turn_index=torch.tensor([0, 1, 1]), sampled_logprobs=mu)
    loss = ImportanceWeighted(loss=inner, cap=2.0)
    scores = scores_of(loss.needs, z, q, y)
    log_pi = z.log_softmax(-1).gather(1, y[:, None]).squeeze(1)
    expected = [min(math.exp(a - b), 2.0) for a, b in zip(log_pi.tolist(), mu.tolist(), strict=True)]
    assert expected[1] == 2.0
    importance = torch.tensor(expected).double()
    by_turn = TurnWeighted(loss=inner)
    gap = (log_pi - q.log_softmax(-1).gather(1, y[:, None]).squeeze(1)).abs()
    turns = turn_weights(gap, batch.trajectory_index, batch.turn_index, 0.2).detach()
    for weighted, weights in ((loss, importance), (by_turn, turns)):
        found, plain = weighted(scores, batch), weights * inner(scores, batch)
        torch.testing.assert_close(found, plain)
        slopes = [torch.autograd.grad(value.sum(), z, retain_graph=True)[0] for value in (found, plain)]
        torch.testing.assert_close(*slopes)  # the weights are constants


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: EntropyAware(k=0), r"`loss\.k`"),
        (lambda: EntropyAware(threshold=-1.0), r"`loss\.threshold`"),
        (lambda: TurnWeighted(loss=SampledToken(), limit=-0.1), r"`loss\.limit`"),
        (lambda: ImportanceWeighted(loss=SampledToken(), cap=0.5), r"`loss\.cap`"),
        (lambda: ImportanceWeighted(loss=SampledToken(policy="top_p")), "full distribution"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(make: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()
