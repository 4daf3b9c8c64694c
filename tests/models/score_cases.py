"""What teachers are asked for, and that two of them answer alike."""

from functools import partial

import torch
from torch import Tensor

from opdlight.losses import Needs
from opdlight.types import Look, TeacherScores
from tests.models.architectures import random_batch
from tests.tiny_models import tiny_tokenizer

SHARED = len(tiny_tokenizer())  # of the 330 ids that a tiny teacher has logits for
BATCH = random_batch([12, 7, 9, 20, 5])
TOP = Needs(support="teacher_top_k", k=6, normaliser=True)
NEEDS = {
    "top-K": TOP,
    "top-K and token": Needs(support="teacher_top_k_and_sampled", k=4, sampled=True, normaliser=True),
    "nucleus": Needs(support="teacher_nucleus", k=9, nucleus=0.7, normaliser=True),
    "token": Needs(sampled=True),
    "student": Needs(support="student_top_k", k=5, normaliser=True),
    "student and token": Needs(support="student_top_k_and_sampled", k=5, normaliser=True),
    "full vocabulary": Needs(support="full_vocabulary", normaliser=True),
    "entropy": Needs(support="teacher_top_k", k=3, teacher_entropy=True, normaliser=True),
    "nothing": Needs(),
}


def chosen_for(needs: Needs) -> Tensor | None:
    generator = torch.Generator().manual_seed(3)
    if needs.support is None or not needs.support.startswith("student"):
        return None
    return torch.stack([torch.randperm(SHARED, generator=generator)[: needs.k] for _ in range(BATCH.num_tokens)])


def look(k: int = 4) -> Look:
    generator = torch.Generator().manual_seed(4)
    at = torch.arange(1, BATCH.num_tokens, 3)
    return Look(at=at, student_ids=torch.stack([torch.randperm(SHARED, generator=generator)[:k] for _ in at]))


def assert_equal(got: TeacherScores, expected: TeacherScores, *, tells_all: bool, atol: float = 2e-5) -> None:
    close = partial(torch.testing.assert_close, atol=atol, rtol=1e-5)
    assert (got.support is None) == (expected.support is None)
    if got.support is not None and expected.support is not None:
        assert got.support.kind == expected.support.kind
        assert torch.equal(got.support.token_ids, expected.support.token_ids)
        assert torch.equal(got.support.valid, expected.support.valid)
        close(got.support.teacher_logprobs, expected.support.teacher_logprobs)
    for name in ("sampled", "entropy"):
        close(getattr(got, name), getattr(expected, name))
    assert (got.view is None) == (expected.view is None)
    if got.view is not None and expected.view is not None:
        assert torch.equal(got.view.top_ids, expected.view.top_ids)
        close(got.view.top_logprobs, expected.view.top_logprobs)
        close(got.view.sampled, expected.view.sampled)
        told = ~got.view.at_other.isnan()
        assert bool(told.all()) == tells_all
        close(got.view.at_other[told], expected.view.at_other[told])
        if got.view.entropy is not None:
            close(got.view.entropy, expected.view.entropy)
