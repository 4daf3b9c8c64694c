"""What the probe finds, against full softmaxes of both models."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from opdlight.batch.collate import Collate
from opdlight.losses import Needs, SupportKind
from opdlight.models import Probe, ProbeResult, Scorer, Student, Teachers
from opdlight.types import Status, TokenBatch, Trajectory, Turn
from tests.callbacks.probe_results import made_up
from tests.models.score_cases import ask
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
def test_a_probe_finds_what_full_softmaxes_say(folders: list[str], temperature: float) -> None:
    student, teachers, batch = parts(folders)
    at = torch.tensor([0, 2, 3, 6])
    scorer = Scorer(student=student, teachers=teachers)
    # whatever the loss asks for beside it
    for needs in (
        Needs(),
        Needs(support=SupportKind.TEACHER_TOP_K, k=3),
        Needs(support=SupportKind.FULL_VOCABULARY, sampled=True),
    ):
        request = replace(ask(needs, teachers, temperature=temperature), probe_at=at, probe_k=5)
        found = scorer.score(batch, request).probe
        assert found is not None
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
        assert (found.loss_tokens, found.global_tokens) == (7, 7)


def test_a_probe_has_no_more_positions_than_asked_and_only_in_its_updates() -> None:
    probe = Probe(every=2, positions=4)
    assert probe.choose(7, update=3) is None
    assert probe.choose(0, update=2) is None
    first, second, again = (probe.choose(7, update=u) for u in (2, 4, 2))
    assert first is not None
    assert second is not None
    assert again is not None
    assert first.shape == (4,)
    assert first.tolist() == sorted(set(first.tolist()))
    assert first.tolist() != second.tolist()
    assert torch.equal(again, first)


def test_k_is_cut_to_the_shared_vocabulary_and_nothing_has_a_graph(folders: list[str]) -> None:
    student, teachers, batch = parts(folders)
    request = replace(ask(Needs(sampled=True), teachers), probe_at=torch.arange(2), probe_k=400)
    scores, found = Scorer(student=student, teachers=teachers).score(batch, request)
    assert scores.student_sampled is not None
    assert scores.student_sampled.requires_grad
    assert found is not None
    assert found.student_ids.shape == (2, len(teachers.shared_vocabulary))
    values = (getattr(found, field.name) for field in fields(found))
    assert not any(v.requires_grad for v in values if isinstance(v, Tensor))


def test_parts_of_a_result_join_to_the_whole() -> None:
    whole = made_up([0, 1, 5])
    cut = [whole.where(whole.position < 1), whole.where(whole.position >= 1)]
    joined = ProbeResult.join(cut)
    for field in fields(ProbeResult):
        value, other = getattr(whole, field.name), getattr(joined, field.name)
        assert torch.equal(value, other) if isinstance(value, Tensor) else field.name == "loss_tokens" or value == other
    assert joined.loss_tokens == 6
