"""What teachers are asked for, and that two of them answer alike."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from opdlight.losses import Needs, SupportKind
from opdlight.models import Scorer, ScoreRequest, Student, Teachers
from opdlight.types import SharedVocabulary, SupportScores, TeacherScores, TokenBatch
from tests.models.architectures import random_batch
from tests.tiny_models import tiny_tokenizer

SHARED = len(tiny_tokenizer())  # of the 330 ids that a tiny teacher has logits for
BATCH = random_batch([12, 7, 9, 20, 5])
TOP = Needs(support=SupportKind.TEACHER_TOP_K, k=6, normaliser=True)
NEEDS = {
    "top-K": TOP,
    "top-K and token": Needs(support=SupportKind.TEACHER_TOP_K_AND_SAMPLED, k=4, sampled=True, normaliser=True),
    "nucleus": Needs(support=SupportKind.TEACHER_NUCLEUS, k=9, nucleus=0.7, normaliser=True),
    "token": Needs(sampled=True),
    "student": Needs(support=SupportKind.STUDENT_TOP_K, k=5, normaliser=True),
    "student and token": Needs(support=SupportKind.STUDENT_TOP_K_AND_SAMPLED, k=5, normaliser=True),
    "full vocabulary": Needs(support=SupportKind.FULL_VOCABULARY, normaliser=True),
    "entropy": Needs(support=SupportKind.TEACHER_TOP_K, k=3, teacher_entropy=True, normaliser=True),
    "nothing": Needs(),
}


def chosen_for(needs: Needs) -> Tensor | None:
    """Ids that a student might choose."""
    generator = torch.Generator().manual_seed(3)
    if needs.chosen_by != "student":
        return None
    return torch.stack([torch.randperm(SHARED, generator=generator)[: needs.k] for _ in range(BATCH.num_tokens)])


def request(needs: Needs, *, probe_k: int = 0, **changed: Any) -> ScoreRequest:
    """What a teacher is asked about BATCH, with the ids of a made-up student; `probe_k` above 0 probes it, too."""
    generator = torch.Generator().manual_seed(4)
    asked = {"needs": needs, "shared": SharedVocabulary(SHARED), "student_ids": chosen_for(needs)}
    if probe_k:
        at = torch.arange(1, BATCH.num_tokens, 3)
        ids = torch.stack([torch.randperm(SHARED, generator=generator)[:probe_k] for _ in at])
        asked |= {"probe_at": at, "probe_k": probe_k, "probe_student_ids": ids}
    return ScoreRequest(**(asked | changed))


def ask(
    needs: Needs, teachers: Teachers | None = None, *, shared: int = SHARED, temperature: float = 1.0
) -> ScoreRequest:
    """What a teacher is asked that chooses the support itself; of the ids that `teachers` share, or the first ones."""
    ids = SharedVocabulary(shared) if teachers is None else teachers.shared_vocabulary
    return ScoreRequest(needs=needs, shared=ids, temperature=temperature)


def scored(
    student: Student, teachers: Teachers, needs: Needs, batch: TokenBatch, temperature: float = 1.0
) -> SupportScores:
    """What a loss sees of both models."""
    scorer = Scorer(student=student, teachers=teachers, reference=teachers)
    return scorer.score(batch, ask(needs, teachers, temperature=temperature)).scores


def assert_equal(got: TeacherScores, expected: TeacherScores, *, tells_all: bool, atol: float = 2e-5) -> None:
    close = partial(torch.testing.assert_close, atol=atol, rtol=1e-5)
    assert (got.support is None) == (expected.support is None)
    if got.support is not None and expected.support is not None:
        assert torch.equal(got.support.token_ids, expected.support.token_ids)
        assert torch.equal(got.support.valid, expected.support.valid)
        close(got.support.teacher_logprobs, expected.support.teacher_logprobs)
    for name in ("sampled", "entropy"):
        close(getattr(got, name), getattr(expected, name))
    assert (got.probe is None) == (expected.probe is None)
    if got.probe is not None and expected.probe is not None:
        assert torch.equal(got.probe.top_ids, expected.probe.top_ids)
        close(got.probe.top_logprobs, expected.probe.top_logprobs)
        close(got.probe.sampled, expected.probe.sampled)
        told = ~got.probe.at_other.isnan()
        assert bool(told.all()) == tells_all
        close(got.probe.at_other[told], expected.probe.at_other[told])
        if got.probe.entropy is not None:
            close(got.probe.entropy, expected.probe.entropy)
