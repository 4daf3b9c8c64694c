"""Who is asked what, and in which order; how the answers of several teachers are put together."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from opdlight.losses import Needs, SupportKind
from opdlight.models import Scorer, ScoreRequest, Student, Teachers
from opdlight.models.loading import load_skeleton, load_tokenizer
from opdlight.types import ProbeScores, SharedVocabulary, TeacherScores, TokenBatch
from tests.models.architectures import random_batch, save
from tests.models.score_cases import BATCH, SHARED

CHOOSES = Needs(support=SupportKind.STUDENT_TOP_K, k=3, sampled=True, reference=True)
REQUEST = ScoreRequest(
    needs=CHOOSES, shared=SharedVocabulary(SHARED), temperature=0.7, probe_at=torch.tensor([1, 4]), probe_k=2
)


class FakeTeacher:
    """A `TeacherModel` that inherits from nothing; log q is its number, and it writes down what happens to it."""

    def __init__(self, folder: str, number: float, events: list[Any], *, tells_entropy: bool = True) -> None:
        self.name, self.tokenizer, self.model = folder, load_tokenizer(folder), load_skeleton(folder)
        self.number, self.events, self.tells_entropy = number, events, tells_entropy
        self.width, self.device = 330, torch.device("cpu")

    def check(self, request: ScoreRequest) -> None:
        self.events.append(("check", self.number, request.probe_k))

    def shard(self, mesh: object, *, offload: bool) -> None:
        self.events.append(("shard", self.number, offload))

    def touch(self, batch: TokenBatch) -> None:
        self.events.append(("touch", self.number))

    def stats(self) -> dict[str, float]:
        return {"calls": self.number}

    def score(self, batch: TokenBatch, request: ScoreRequest) -> TeacherScores:
        self.events.append(("score", self.number, batch.target_ids.tolist()))
        probe = None
        if request.probe_at is not None:
            assert request.probe_student_ids is not None
            ids = request.probe_student_ids
            probe = ProbeScores(
                top_ids=ids,
                top_logprobs=torch.full(ids.shape, self.number),
                sampled=batch.target_ids[request.probe_at].float(),
                entropy=torch.zeros(len(ids)) if self.tells_entropy else None,
                at_other=torch.zeros(ids.shape),
            )
        return TeacherScores(sampled=torch.full(batch.target_ids.shape, self.number), probe=probe)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [save(folder / str(seed), seed=seed) for seed in range(3)]


@dataclass
class Recorded:
    """A `BatchScorer` that says nothing and keeps what it was asked."""

    name: str
    events: list[str]
    asked: list[ScoreRequest] = field(default_factory=list)

    def score(self, batch: TokenBatch, request: ScoreRequest) -> TeacherScores:
        self.events.append(self.name)
        self.asked.append(request)
        return TeacherScores(sampled=torch.full(batch.target_ids.shape, -1.0))


def listen(student: Student, events: list[str]) -> Callable[[], None]:
    return student.model.get_decoder().register_forward_hook(lambda *_: events.append("student")).remove


def test_the_student_is_asked_first_then_the_teachers_then_the_reference(folders: list[str]) -> None:
    student, events = Student(folders[0]), list[str]()
    teachers, reference = (Recorded(name, events) for name in ("teachers", "reference"))
    scorer = Scorer(student=student, teachers=teachers, reference=reference)
    stop = listen(student, events)
    scores, probe = scorer.score(BATCH, REQUEST)
    assert events == ["student", "teachers", "reference"]
    assert probe is None  # the teachers said nothing of it
    assert scores.reference_sampled is not None
    (asked,), (start,) = teachers.asked, reference.asked
    assert replace(asked, student_ids=None, probe_student_ids=None) == REQUEST
    hidden = student.hidden(BATCH)
    best = student.head().logits(hidden)[:, :SHARED].topk(3).indices
    assert asked.student_ids is not None
    assert asked.probe_student_ids is not None
    assert torch.equal(asked.student_ids, best)
    assert torch.equal(asked.probe_student_ids, best[[1, 4], :2])
    assert start == ScoreRequest(needs=Needs(sampled=True), shared=REQUEST.shared, temperature=0.7)
    events.clear()
    scorer.score(BATCH, replace(REQUEST, needs=Needs(sampled=True)), hidden=hidden)
    assert events == ["teachers"]  # the hidden states were there, and no reference is needed
    assert teachers.asked[-1].student_ids is None
    events.clear()
    found = scorer.student_logprobs(BATCH, REQUEST)
    assert events == ["student"]
    assert not found.requires_grad
    assert scores.student_sampled is not None
    assert torch.equal(found, scores.student_sampled)
    stop()


def several(folders: list[str], events: list[Any], **tells: bool) -> Teachers:
    def make(folder: str) -> FakeTeacher:
        number = folders.index(folder)
        return FakeTeacher(folder, float(number), events, tells_entropy=tells.get(f"of_{number}", True))

    return Teachers(dict(zip("abc", folders, strict=True)), Student(folders[0]), make)


@pytest.mark.parametrize("sharded", [False, True])
def test_teachers_without_a_row_are_touched_in_the_same_order_if_they_are_sharded(
    sharded: bool, folders: list[str]
) -> None:
    events: list[Any] = []
    teachers = several(folders, events)
    if sharded:
        teachers.place("offloaded", object())  # type: ignore[arg-type]
        assert events == [("shard", n, True) for n in range(3)]
        events.clear()
    batch = random_batch([9, 7], tasks=("c", "a"))
    teachers.score(batch, ScoreRequest(needs=Needs(sampled=True), shared=teachers.shared_vocabulary))
    assert [(what, number) for what, number, *_ in events] == [
        ("score", 0.0), *([("touch", 1.0)] if sharded else []), ("score", 2.0),
    ]  # fmt: skip
    events.clear()
    one = random_batch([9, 7], tasks=("b",))
    teachers.score(one, ScoreRequest(needs=Needs(sampled=True), shared=teachers.shared_vocabulary))
    scored = [event for event in events if event[0] == "score"]
    assert scored == [("score", 1.0, one.target_ids.tolist())]
    assert len(events) == (3 if sharded else 1)
    events.clear()
    teachers.score(one, ScoreRequest(needs=Needs(), shared=teachers.shared_vocabulary))  # another rank may ask
    assert events == ([("touch", n) for n in range(3)] if sharded else [])


def test_answers_are_put_together_position_by_position(folders: list[str]) -> None:
    events: list[Any] = []
    teachers = several(folders, events)
    batch = random_batch([9, 7, 6, 8], tasks=("c", "a"))
    at = torch.tensor([0, 3, 5, 7, 8, 11])
    ids = torch.arange(12).view(6, 2)
    request = ScoreRequest(
        needs=Needs(sampled=True), shared=teachers.shared_vocabulary, probe_at=at, probe_k=2, probe_student_ids=ids
    )
    found = teachers.score(batch, request)
    owner = torch.tensor([2.0, 0.0])[batch.task_index]
    assert found.sampled is not None
    assert found.probe is not None
    assert torch.equal(found.sampled, owner)
    assert torch.equal(found.probe.top_ids, ids)
    assert torch.equal(found.probe.sampled, batch.target_ids[at].float())
    assert torch.equal(found.probe.top_logprobs[:, 0], owner[at])


def test_what_one_teacher_does_not_tell_is_told_of_none(folders: list[str]) -> None:
    teachers = several(folders, [], of_2=False)
    batch, ids = random_batch([9, 7], tasks=("c", "a")), torch.zeros(3, 1, dtype=torch.long)
    request = ScoreRequest(
        needs=Needs(), shared=teachers.shared_vocabulary, probe_at=torch.tensor([0, 1, 5]), probe_student_ids=ids
    )
    found = teachers.score(batch, request).probe
    assert found is not None
    assert found.entropy is None


def test_no_more_ids_are_probed_than_are_shared(folders: list[str]) -> None:
    events: list[Any] = []
    teachers = several(folders, events)
    shared = teachers.shared_vocabulary
    teachers.check(ScoreRequest(needs=Needs(), shared=shared, probe_k=10**6))
    assert events == [("check", n, len(shared)) for n in range(3)]
    assert teachers.stats() == {"calls": 3.0}


def test_part_of_a_request_names_the_same_positions() -> None:
    ids: Tensor = torch.arange(20).view(10, 2)
    asked = replace(REQUEST, student_ids=ids, probe_at=torch.tensor([1, 4, 7]), probe_student_ids=ids[[1, 4, 7]])
    part = asked.at(torch.tensor([0, 4, 6, 7]))
    assert part.student_ids is not None
    assert part.probe_at is not None
    assert part.probe_student_ids is not None
    assert part.student_ids.tolist() == ids[[0, 4, 6, 7]].tolist()
    assert part.probe_at.tolist() == [1, 3]
    assert part.probe_student_ids.tolist() == ids[[4, 7]].tolist()
