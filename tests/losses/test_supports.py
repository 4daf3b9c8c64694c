"""Supports that differ from position to position."""

import torch

from opdlight.losses import SupportMatching
from tests.losses.logit_tables import example, scores_of


def test_nucleus_may_hold_one_token_or_fewer_than_its_mass() -> None:
    q = torch.tensor([[9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    loss = SupportMatching(support="teacher_nucleus", nucleus=0.9, k=3)
    support = scores_of(loss.needs, q, q, torch.zeros(2, dtype=torch.long)).support
    assert support is not None
    assert support.valid.tolist() == [[True, False, False], [True, True, True]]  # ¾ of the mass: k is the limit


def test_sampled_token_joins_the_support_once() -> None:
    z, q, y = example()
    loss = SupportMatching(support="teacher_top_k_and_sampled", k=4)
    support = scores_of(loss.needs, z, q, y).support
    assert support is not None
    for ids, valid, token in zip(support.token_ids.tolist(), support.valid.tolist(), y.tolist(), strict=True):
        kept = [i for i, v in zip(ids, valid, strict=True) if v]
        assert sorted(set(kept)) == sorted(kept)
        assert token in kept
    assert 0 < support.valid[:, -1].sum() < len(y)
