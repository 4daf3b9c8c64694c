"""Readings against full softmaxes of both models."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from opdlight.batch.collate import Collate
from opdlight.losses import Needs
from opdlight.models import Student, Teachers
from opdlight.models.probe import Reader, Reading, look_at, read
from opdlight.types import Status, TokenBatch, Trajectory, Turn
from tests.callbacks.made_readings import reading
from tests.tiny_models import save_tiny


def trajectory(task: str, prompt: list[int], completion: list[int]) -> Trajectory:
    turn = Turn(
        prompt_ids=prompt,
        completion_ids=completion,
        sampled_logprobs=[-0.5] * len(completion),
        finish_reason="stop",
        policy_version=0,
        reward=0.0,
    )
    return Trajectory(task=task, group=0, seed=0, turns=[turn], reward=0.0, status=Status.SUCCESS)


MADE = [trajectory("a", [10, 11, 12], [20, 21, 2]), trajectory("b", [30, 31], [40, 41, 42, 2])]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [str(save_tiny(folder / str(seed), seed)) for seed in (1, 2, 3)]


def parts(folders: list[str]) -> tuple[Student, Teachers, TokenBatch]:
    student = Student(folders[0])
    teachers = Teachers({"a": folders[1], "b": folders[2]}, student)  # one teacher a task
    shared = teachers.shared_vocabulary
    (batch,) = Collate(tasks=("a", "b"), shared=shared, micro_batch_tokens=999)(MADE)
    return student, teachers, batch


def logprobs(model: str, one: Trajectory, temperature: float) -> Tensor:
    ids = torch.tensor([one.turns[0].prompt_ids + one.turns[0].completion_ids])
    logits = Student(model).model(ids).logits[0, len(one.turns[0].prompt_ids) - 1 : -1]
    return (logits / temperature).log_softmax(-1)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_reading_is_what_full_softmaxes_say(folders: list[str], temperature: float) -> None:
    student, teachers, batch = parts(folders)
    hidden, head, shared = student.hidden(batch), student.head(), teachers.shared_vocabulary
    at = torch.tensor([0, 2, 3, 6])
    look = look_at(at, hidden, head, k=5, shared=shared)
    # whatever the loss asks for beside it
    for needs in (Needs(), Needs(support="teacher_top_k", k=3), Needs(support="full_vocabulary", sampled=True)):
        teacher = teachers.score(batch, needs=needs, chosen=None, temperature=temperature, look=look)
        assert teacher.view is not None
        found = read(batch, look, teacher.view, hidden, head, update=4, temperature=temperature, shared=shared)
        for n, place in enumerate(at.tolist()):
            task, position = int(batch.task_index[place]), int(batch.token_position[place])
            p, q = (logprobs(m, MADE[task], temperature)[position] for m in (folders[0], folders[1 + task]))
            token = MADE[task].turns[0].completion_ids[position]
            best_p, best_q = p.topk(5), q.topk(5)
            expected = {
                "task": task, "position": position, "token": token, "turn": 0, "engine": -0.5, "student": p[token],
                "trainer": logprobs(folders[0], MADE[task], 1.0)[position][token], "teacher": q[token],
                "student_ids": best_p.indices, "student_top": best_p.values, "teacher_at_student": q[best_p.indices],
                "teacher_ids": best_q.indices, "teacher_top": best_q.values, "student_at_teacher": p[best_q.indices],
                "student_entropy": -(p.exp() * p).sum(), "teacher_entropy": -(q.exp() * q).sum(),
                "divergence": (torch.softmax(p[best_q.indices], 0) * (
                    torch.log_softmax(p[best_q.indices], 0) - torch.log_softmax(best_q.values, 0))).sum(),
                "student_mass": p[best_q.indices].exp().sum(), "teacher_mass": best_q.values.exp().sum(),
                "sampled_in_support": float(token in best_q.indices.tolist()),
                "overlap": len({*best_p.indices.tolist()} & {*best_q.indices.tolist()}) / 5,
                "gap": p[token] - q[token],
            }  # fmt: skip
            for name, value in expected.items():
                torch.testing.assert_close(
                    torch.as_tensor(getattr(found, name)[n]).double(), torch.as_tensor(value).double(),
                    atol=2e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}",
                )  # fmt: skip
        assert (found.update, found.loss_tokens, found.global_tokens) == (4, 7, 7)


def test_the_reader_looks_at_no_more_positions_than_asked_and_only_in_its_updates(folders: list[str]) -> None:
    student, teachers, batch = parts(folders)
    hidden, head = student.hidden(batch), student.head()
    reader = Reader(every=2, positions=4, k=400)
    shared = teachers.shared_vocabulary
    assert reader.look(batch, hidden, head, update=3, shared=shared) is None
    first, second = (reader.look(batch, hidden, head, update=u, shared=shared) for u in (2, 4))
    assert first is not None
    assert second is not None
    assert first.student_ids.shape == (4, len(shared))  # k is cut to what there is
    assert not first.student_ids.requires_grad
    assert first.at.tolist() == sorted(set(first.at.tolist()))
    assert first.at.tolist() != second.at.tolist()
    again = reader.look(batch, hidden, head, update=2, shared=shared)
    assert again is not None
    assert torch.equal(again.at, first.at)


def test_parts_of_a_reading_join_to_the_whole() -> None:
    whole = reading([0, 1, 5])
    cut = [whole.where(whole.position < 1), whole.where(whole.position >= 1)]
    joined = Reading.join(cut)
    for field in fields(Reading):
        value, other = getattr(whole, field.name), getattr(joined, field.name)
        assert torch.equal(value, other) if isinstance(value, Tensor) else field.name == "loss_tokens" or value == other
    assert joined.loss_tokens == 6
