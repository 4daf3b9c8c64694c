"""Measures of tokens against slow obvious references."""

import math

import pytest
import torch
from torch import Tensor

from opdlight.losses import SampledToken, SupportMatching
from opdlight.metrics.tokens import (
    matching_gradient_norm,
    overlap,
    quantiles_by_bucket,
    repeated,
    repetition_rate,
    sampled_in_support,
    sampled_token_gradient_norm,
    student_mass,
    subsample,
    teacher_mass,
    top_share,
)
from opdlight.types import Support, SupportScores
from tests.losses.logit_tables import batch_of


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_top_share_is_a_sum_over_sorted_sizes() -> None:
    values = random(997)
    for share in (0.001, 0.01, 0.1, 0.5, 1.0):
        sizes = sorted((abs(v) for v in values.tolist()), reverse=True)
        expected = sum(sizes[: math.ceil(share * 997)]) / sum(sizes)
        assert float(top_share(values, share)) == pytest.approx(expected)
    assert float(top_share(torch.ones(100), 0.1)) == pytest.approx(0.1)
    assert float(top_share(torch.ones(100), 0.07)) == pytest.approx(0.07)  # 0.07 · 100 is a little above 7 in binary
    assert float(top_share(torch.zeros(5), 0.1)) == 0.0
    with pytest.raises(ValueError, match="`share`"):
        top_share(values, 0.0)


def test_gradient_norms_are_those_of_the_losses() -> None:
    logits, teacher = random(5, 7).requires_grad_(), random(5, 7, seed=1).log_softmax(1)
    token = torch.tensor([0, 3, 6, 3, 1])
    picked = teacher.gather(1, token[:, None]).squeeze(1)
    scores = SupportScores(
        support=None,
        student_sampled=logits.log_softmax(1).gather(1, token[:, None]).squeeze(1),
        teacher_sampled=picked,
    )
    batch = batch_of(token)
    (expected,) = torch.autograd.grad(SampledToken()(scores, batch).sum(), logits)
    found = sampled_token_gradient_norm(logits.detach().log_softmax(1), token, picked)
    torch.testing.assert_close(found, expected.norm(dim=1))

    best, ids = teacher.topk(4, dim=1)
    support = Support(
        token_ids=ids,
        teacher_logits=best,
        teacher_normaliser=torch.zeros(len(ids)),
        valid=torch.ones_like(ids) > 0,
    )
    scores = SupportScores(support=support, student_logits=logits.gather(1, ids))
    (expected,) = torch.autograd.grad(SupportMatching(k=4)(scores, batch).sum(), logits)
    torch.testing.assert_close(matching_gradient_norm(logits.detach().gather(1, ids), best), expected.norm(dim=1))


def test_repetition_counts_ngrams_of_the_turns_before() -> None:
    generator = torch.Generator().manual_seed(3)
    turns = [torch.randint(3, (n,), generator=generator).tolist() for n in (9, 2, 0, 17, 4)]
    grams = [
        (number, end, tuple(ids[end - 4 : end])) for number, ids in enumerate(turns) for end in range(4, len(ids) + 1)
    ]
    again = {(number, end): gram in [g for *_, g in grams[:i]] for i, (number, end, gram) in enumerate(grams)}
    assert 0 < sum(again.values()) < len(again)
    assert repetition_rate(turns, 4) == pytest.approx(sum(again.values()) / len(again))
    flags = repeated(turns, 4)
    assert [len(f) for f in flags] == [len(ids) for ids in turns]
    for number, ids in enumerate(turns):
        assert flags[number] == [again.get((number, end)) for end in range(1, len(ids) + 1)]
    assert math.isnan(repetition_rate([[1, 2], [1, 2, 3]], 4))
    assert repetition_rate([[5] * 8], 4) == pytest.approx(4 / 5)


def test_quantiles_are_taken_bucket_by_bucket() -> None:
    values, bucket = random(60), torch.arange(60) % 3
    found = quantiles_by_bucket(values, bucket, 4, (0.1, 0.5, 0.9))
    for b in range(3):
        ordered = sorted(v for v, own in zip(values.tolist(), bucket.tolist(), strict=True) if own == b)
        for i, q in enumerate((0.1, 0.5, 0.9)):
            place = q * (len(ordered) - 1)
            low, part = int(place), place % 1
            expected = ordered[low] + part * (ordered[low + 1] - ordered[low])
            assert float(found[b, i]) == pytest.approx(expected)
    assert found[3].isnan().all()


def test_coverage_figures_against_loops() -> None:
    torch.manual_seed(0)
    n, k, v = 9, 4, 11
    q, z = torch.randn(n, v).log_softmax(-1), torch.randn(n, v)
    ids = q.topk(k).indices
    valid = torch.rand(n, k) > 0.3
    support = Support(
        token_ids=ids,
        teacher_logits=q.gather(1, ids),
        teacher_normaliser=torch.zeros(len(q)),
        valid=valid,
    )
    target, other = torch.randint(v, (n,)), z.topk(k).indices
    for i in range(n):
        inside = [int(ids[i, j]) for j in range(k) if valid[i, j]]
        assert teacher_mass(support)[i] == pytest.approx(sum(math.exp(q[i, j]) for j in inside), abs=1e-6)
        got = student_mass(z.gather(1, ids), z.logsumexp(-1), valid)[i]
        assert got == pytest.approx(sum(float(z[i].softmax(-1)[j]) for j in inside), abs=1e-6)
        assert sampled_in_support(support, target)[i] == (int(target[i]) in inside)
        shared = set(ids[i].tolist()) & set(other[i].tolist())
        assert overlap(ids, other)[i] == pytest.approx(len(shared) / k)


def test_subsample() -> None:
    assert subsample(5, 10).tolist() == [0, 1, 2, 3, 4]
    chosen = subsample(100, 10, torch.Generator().manual_seed(0)).tolist()
    assert len(set(chosen)) == 10
    assert chosen == sorted(chosen)
